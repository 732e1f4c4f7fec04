"""Specification of a vision-language model: image preprocessing, prompt, decoder sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from edge.errors import BundleError
from edge.spec.division import LONGEST_EDGE, AnyresSpec, PatchesSpec, RatioSpec, SlicesSpec, ViewsSpec
from edge.spec.pieces import Pieces, Questions, ViewPieces, misplaced, piece, shown, unnumbered

T = TypeVar("T")
MOST_SIDE = 4096  # pixels of the square that a vision encoder sees
MOST = 2**31 - 1  # of whatever is counted, so that every language's int holds it and no arithmetic overflows
Fit = Literal["pad", "crop", "stretch", "long_edge", "patches"]
Resample = Literal["bicubic", "bilinear", "lanczos"]


@dataclass(frozen=True)
class ImageSpec:
    """How an image becomes pixels. `fit` pads to a square of `background`, crops the centre, or stretches all to it,
    with "long_edge" after the longer edge was resized to that; with "patches" it keeps its ratio, and about as many
    pixels as the square has."""

    size: int
    fit: Fit
    background: tuple[int, int, int]
    resample: Resample
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    long_edge: int | None = None
    views: ViewsSpec | AnyresSpec | RatioSpec | SlicesSpec | None = None  # None: one view
    patches: PatchesSpec | None = None  # of the fit of this name

    def faults(self) -> list[str]:
        """What no reader could follow."""
        if not 1 <= self.size <= MOST_SIDE:
            return [f"has size {self.size!r}, at most {MOST_SIDE} pixels are read"]
        if (self.fit == "long_edge") == (self.long_edge is None):
            return [f"has the fit {self.fit!r} and long_edge {self.long_edge}"]
        if self.long_edge is not None and not 1 <= self.long_edge <= LONGEST_EDGE:
            return [f"has long_edge {self.long_edge}, of at most {LONGEST_EDGE}"]
        if (self.fit == "patches") == (self.patches is None):
            return [f"has the fit {self.fit!r} and patches {self.patches}"]
        if self.views is not None and isinstance(self.views, SlicesSpec) != (self.fit == "patches"):
            return [f"has the fit {self.fit!r} and views {self.views}"]
        found = [] if self.patches is None else self.patches.faults(self.size)
        return found + ([] if self.views is None else self.views.faults(self.size, self.long_edge))

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Of a view's numbers, as the vision part takes them."""
        if self.patches is None:
            return (1, 3, self.size, self.size)
        return (1, 1, self.patches.most, self.patches.width)


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
    image_question_when: Literal["anywhere", "first"] = "anywhere"  # where an image stands in such a question
    views: ViewPieces | None = None  # of an image of several; one of a single view becomes `image`

    def questions(self, image: bool) -> Questions:
        return self.image_question if image and self.image_question else self.question

    @property
    def user(self) -> str:
        """A conversation's first question about an image, for people: ids in brackets, `{question}` where it stands."""
        asked, said = self.questions(image=True), {"system": self.default_system, "image": "<image>"}
        said["content"] = shown(self.image, said) + "{question}"
        return shown(asked.after_system if self.default_system and asked.after_system else asked.first, said)

    def pieces(self) -> Iterator[Pieces]:
        """All of them."""
        yield from (self.image, self.answer, self.generation)
        for asked in (self.question, self.image_question):
            if asked is not None:
                yield from (asked.first, asked.after_system or (), asked.later)
        if self.views is not None:
            yield from self.views.all()

    @property
    def end_id(self) -> int:
        """The id that ends an answer, for programs that know one."""
        return next(iter(self.end_ids), self.stop_ids[0])

    def faults(self) -> list[str]:
        """Slots that are missing, or stand where nothing can fill them."""
        found = misplaced("image", unnumbered(self.image), "image") + misplaced("answer", self.answer, "answer")
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
        if self.views is not None:
            found += self.views.faults()
        return found


@dataclass(frozen=True)
class VisionSpec:
    """The transformer of the vision encoder, as the arithmetic of time and memory needs it."""

    width: int
    layers: int  # that are computed, which may be fewer than the checkpoint has
    heads: int
    positions: int  # that attention sees: the patches, and a class token where there is one
    patches: int


@dataclass(frozen=True)
class DecoderSpec:
    """The defaults stand for what a manifest of schema 1 does not tell."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    context: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None = field(default=None, hash=False)  # with a `rope_type`, as transformers has it
    rope_dim: int | None = None  # how many numbers of a head rotate
    family: str | None = None
    ffn: int | None = None  # width of the feed-forward layers
    gated: bool | None = None  # whether they have a gate beside the up projection


@dataclass(frozen=True)
class VLMSpec:
    image: ImageSpec
    prompt: PromptSpec
    decoder: DecoderSpec
    vision: VisionSpec | None  # None: a manifest of schema 1 does not tell

    def tells_of(self, other: VLMSpec) -> bool:
        """Whether all that this one says is so of another."""
        if self.vision is None:
            untold: dict[str, Any] = dict.fromkeys(_UNTOLD)
            prompt = replace(other.prompt, restarts=self.prompt.restarts)
            other = replace(other, vision=None, prompt=prompt, decoder=replace(other.decoder, **untold))
        return self == other

    @property
    def most_views(self) -> int:
        """Of an image: all tiles that it may have, and the whole."""
        views = self.image.views
        if views is None:
            return 1
        if isinstance(views, AnyresSpec):
            return views.most_views
        if isinstance(views, RatioSpec):
            return 1 + max(0, views.most_tiles(self.prompt.image_tokens, views.image_tokens))
        if isinstance(views, SlicesSpec):
            return 1 + max(0, views.most_slices(self.prompt.image_tokens, views.image_tokens))
        most = views.grid**2 + 1
        return most if views.image_tokens is None else min(most, views.image_tokens // self.prompt.image_tokens)

    def to_json(self) -> dict[str, Any]:
        whole = asdict(self)
        decoder = whole["decoder"]
        decoder["rope"] = {name: decoder.pop(f"rope_{name}") for name in _ROPE}
        for section, spec in (("image", self.image), ("prompt", self.prompt)):
            for name, default in _ADDED[type(spec)].items():
                if getattr(spec, name) == default:
                    del whole[section][name]
        if self.prompt.views is not None and not self.prompt.views.overview_first:
            del whole["prompt"]["views"]["overview_first"]
        return whole

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VLMSpec:
        first = data["schema"] == 1
        decoder = dict(_section(data, "decoder"))
        if not first:
            rope = _section(decoder, "rope")
            decoder |= {f"rope_{name}": rope[name] for name in _ROPE if name in rope}
        found = cls(
            image=_read(ImageSpec, data, "image"),
            prompt=_read(PromptSpec, data, "prompt"),
            decoder=_read(DecoderSpec, {"decoder": decoder}, "decoder", _UNTOLD if first else ()),
            vision=None if first else _read(VisionSpec, data, "vision"),
        )
        if fault := found._contradiction():
            raise BundleError(f"manifest.json: {fault}", hint="export the bundle again")
        return found

    def _contradiction(self) -> str | None:
        """Where the image's views do not go with the prompt."""
        views, one = self.image.views, self.prompt.image_tokens
        if isinstance(views, AnyresSpec) and views.view_tokens != one:
            return f"a view has {views.side} embeddings a side and a newline, and the prompt {one} for it"
        if isinstance(views, ViewsSpec | SlicesSpec):
            most = views.grid if isinstance(views, ViewsSpec) else views.slices
            tiles = () if self.prompt.views is None else self.prompt.views.tiles
            if not most <= min(len(tiles), len(tiles[0]) if tiles else 0):
                return f"an image has {most} tiles a side, and the prompt no pieces for them"
        return None


_ROPE = ("theta", "scaling", "dim")
# What a manifest leaves out where it is so: schema 2 did not have these fields at first.
_ADDED: Mapping[type, Mapping[str, Any]] = {
    ImageSpec: {"long_edge": None, "views": None, "patches": None},
    PromptSpec: {"image_question_when": "anywhere", "views": None},
    ViewPieces: {"overview_first": False},
}
_UNTOLD = tuple(f.name for f in fields(DecoderSpec) if f.default is not MISSING)


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = data.get(name)
    if not isinstance(section, Mapping):
        raise BundleError(f"manifest.json has no {name!r} section", hint="export the bundle again")
    return section


def _read(kind: type[T], data: Mapping[str, Any], name: str, optional: Collection[str] = ()) -> T:
    section = _section(data, name)
    try:
        found = parse(kind, section, optional)
        if kind in (VisionSpec, DecoderSpec):
            _require_counts(found, all_told=not optional)
        if isinstance(found, PromptSpec | ImageSpec) and (faults := found.faults()):
            raise ValueError("; ".join(faults))
        return found
    except ValueError as error:
        raise BundleError(f"manifest.json: {name!r} {error}", hint="export the bundle again") from error


def _require_counts(spec: object, all_told: bool) -> None:
    """Nothing that is divided by is zero; and None only where it means something, or where schema 1 does not tell."""
    for name, kind in get_type_hints(type(spec)).items():
        value = getattr(spec, name)
        untold = value is None and all_told and name != "rope_scaling"
        if untold or (value is not None and kind in (int, int | None) and not 1 <= value <= MOST):
            raise ValueError(f"has {name} {value!r}")


def parse(kind: type[T], section: Mapping[str, Any], optional: Collection[str] = ()) -> T:
    """One of these dataclasses from a JSON object; keys that it does not know are passed over. Raises ValueError, which
    names the fields that are missing and not `optional`, or no value of their type."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if missing := known - set(optional) - section.keys() - _ADDED.get(kind, {}).keys():
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    values = {}
    for key, expected in get_type_hints(kind).items():
        if key not in section:
            continue
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
        if Pieces in kinds:
            return tuple(map(piece, value))
        inner = next((get_args(k)[0] for k in kinds if get_origin(k) is tuple), None)
        return tuple(_value(item, inner) for item in value) if get_origin(inner) is tuple else tuple(value)
    if isinstance(value, Mapping):
        nested = [kind for kind in kinds if is_dataclass(kind) and isinstance(kind, type)]
        if nested:  # of several, the one whose first field is told
            return parse(next((kind for kind in nested if fields(kind)[0].name in value), nested[0]), value)
    return value


def _fits(value: object, kind: Any) -> bool:
    """Whether a value of JSON is what a field's annotation says. No number of a spec is negative or infinite."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return value in arguments
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if get_origin(kind) is UnionType:
        return any(_fits(value, k) for k in arguments)
    if get_origin(kind) is tuple:
        kinds = arguments[:1] * len(value) if isinstance(value, tuple) and arguments[-1] is ... else arguments
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind in (int, float):
        numbers = int if kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and 0 <= value < float("inf")
    return isinstance(value, kind)
