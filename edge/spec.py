"""What a runtime must know of a vision-language model: how it sees, how it is spoken to, how large it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from edge.errors import BundleError
from edge.pieces import Pieces, Questions, misplaced, piece

T = TypeVar("T")


@dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes pixels. `fit` pads to a square of `background`, or crops the centre."""

    size: int
    fit: Literal["pad", "crop"]
    background: tuple[int, int, int]
    resample: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class PromptSpec:
    """A chat template as pieces.

    A conversation is `bos_id`, then for each turn a question, `answer` and `end_ids`; the open turn ends with
    `generation`. Each image of a question becomes `image`, with its rows in the slot. Pieces of text and slots beside
    each other are one text to the tokenizer.
    """

    question: Questions
    image_question: Questions | None  # where the question has an image; None: the same
    image: Pieces
    answer: Pieces  # of an answer that is known; one that the model wrote stands after `generation`, as its ids
    generation: Pieces
    default_system: str  # "": without a system message
    image_tokens: int  # rows that one view of an image takes
    bos_id: int | None  # put once, at the very start
    restarts: tuple[Literal["bos", "ids", "image"], ...]  # a text after these is tokenised as one at the start is
    end_ids: tuple[int, ...]  # close an answer
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]

    def questions(self, image: bool) -> Questions:
        return self.image_question if image and self.image_question else self.question

    def pieces(self) -> Iterator[Pieces]:
        """All of them."""
        yield from (self.image, self.answer, self.generation)
        for asked in (self.question, self.image_question):
            if asked is not None:
                yield from (asked.first, asked.after_system or (), asked.later)

    @property
    def end_id(self) -> int:
        """The id that ends an answer, for programs that know one."""
        return next(iter(self.end_ids), self.stop_ids[0])

    def faults(self) -> list[str]:
        """Slots that are missing, or stand where nothing can fill them."""
        found = misplaced("image", self.image, "image") + misplaced("answer", self.answer, "answer")
        found += misplaced("generation", self.generation)
        for name, asked in (("question", self.question), ("image_question", self.image_question)):
            if asked is None:
                continue
            found += misplaced(f"{name}.first", asked.first, "content")
            found += misplaced(f"{name}.later", asked.later, "content")
            if asked.after_system is not None:
                found += misplaced(f"{name}.after_system", asked.after_system, "system", "content")
            elif self.default_system:
                found.append(f"default_system is {self.default_system!r}, and {name}.after_system has no slot for it")
        if not self.stop_ids:
            found.append("stop_ids has no id")
        return found


@dataclass(frozen=True)
class DecoderSpec:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    context: int
    rope_theta: float


@dataclass(frozen=True)
class VLMSpec:
    image: ImageSpec
    prompt: PromptSpec
    decoder: DecoderSpec

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VLMSpec:
        return cls(
            image=_read(ImageSpec, data, "image"),
            prompt=_read(PromptSpec, data, "prompt"),
            decoder=_read(DecoderSpec, data, "decoder"),
        )


def _read(kind: type[T], data: Mapping[str, Any], name: str) -> T:
    section = data.get(name)
    if not isinstance(section, Mapping):
        raise BundleError(f"manifest.json has no {name!r} section", hint="export the bundle again")
    try:
        found = parse(kind, section)
        if isinstance(found, PromptSpec) and (faults := found.faults()):
            raise ValueError("; ".join(faults))
        return found
    except ValueError as error:
        raise BundleError(f"manifest.json: {name!r} {error}", hint="export the bundle again") from error


def parse(kind: type[T], section: Mapping[str, Any]) -> T:
    """One of these dataclasses from a JSON object; keys that it does not know are passed over. Raises ValueError, which
    names the fields that are missing or no value of their type."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if missing := known - section.keys():
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    values = {}
    for key, expected in get_type_hints(kind).items():
        try:
            values[key] = _value(section[key], expected)
        except ValueError as error:
            raise ValueError(f"{key} {error}") from error
        if not _fits(values[key], expected):
            raise ValueError(f"has {key} {values[key]!r}")
    return kind(**values)


def _value(value: Any, kind: Any) -> Any:
    """JSON's lists and objects as a field's annotation has them: tuples, pieces and dataclasses."""
    kinds = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    if isinstance(value, list | tuple):
        return tuple(map(piece, value) if Pieces in kinds else value)
    if isinstance(value, Mapping):
        for nested in kinds:
            if is_dataclass(nested) and isinstance(nested, type):
                return parse(nested, value)
    return value


def _fits(value: object, kind: Any) -> bool:
    """Whether a value of JSON is what a field's annotation says. No number of a spec is negative or infinite."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return value in arguments
    if get_origin(kind) is UnionType:
        return any(_fits(value, k) for k in arguments)
    if get_origin(kind) is tuple:
        kinds = arguments[:1] * len(value) if isinstance(value, tuple) and arguments[-1] is ... else arguments
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind in (int, float):
        numbers = int if kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and 0 <= value < float("inf")
    return isinstance(value, kind)
