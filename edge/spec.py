"""What a runtime must know of a vision-language model: how it sees, how it is spoken to, how large it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from edge.errors import BundleError

T = TypeVar("T")
Fit = Literal["pad", "crop", "stretch"]


@dataclass(frozen=True)
class ImageSpec:
    """How an image becomes pixels. `fit` pads to a square of `background`, crops the centre, or stretches all to it."""

    size: int
    fit: Fit
    background: tuple[int, int, int]
    resample: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class PromptSpec:
    """A chat template as data. Each piece is text with one `{text}`; a picture stands where `image` puts its mark.

    A conversation is `system`, then for each turn `user` and `assistant`; the open turn ends with `generation`.
    """

    system: str  # "{text} "
    user: str  # "USER: {text} "
    assistant: str  # "ASSISTANT: {text}"; the end-of-turn id follows
    generation: str  # "ASSISTANT:"
    image: str  # "<image>\n": what stands before the question for each picture; "<image>" is the mark
    default_system: str
    image_tokens: int  # rows that one picture takes
    bos_id: int | None  # put once, at the very start
    end_id: int  # closes an assistant's turn
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]


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
        return parse(kind, section)
    except ValueError as error:
        raise BundleError(f"manifest.json: {name!r} {error}", hint="export the bundle again") from error


def parse(kind: type[T], section: Mapping[str, Any]) -> T:
    """One of these dataclasses from a JSON object; keys that it does not know are passed over. Raises ValueError, which
    names the fields that are missing or no value of their type."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if missing := known - section.keys():
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items() if k in known}
    for key, expected in get_type_hints(kind).items():
        if not _fits(values[key], expected):
            raise ValueError(f"has {key} {values[key]!r}")
    return kind(**values)


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
