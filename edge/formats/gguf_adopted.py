"""Check of a GGUF decoder that is kept as somebody published it, of whatever architecture, before the library sees it.

Its sizes are those of the manifest, and its settings are numbers, flags and short texts; what an architecture makes of
the others is the library's business.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from edge.errors import BundleError
from edge.formats.gguf import GGUF, GGUFArray
from edge.spec import DecoderSpec

_MOST, _LONGEST = 1 << 31, 256  # of a number, and letters of a text
_TABLE = "token_embd.weight"


def check_adopted(file: GGUF, spec: DecoderSpec) -> None:
    """Raises BundleError when the file's sizes are not those of `spec`, or a setting is no sound number."""
    prefix = f"{file.architecture}."
    own = {key.removeprefix(prefix): v for key, v in file.settings.items() if key.startswith(prefix)}
    exact = {"block_count": spec.layers, "embedding_length": spec.hidden}
    for key, expected in exact.items():
        if own.get(key) != expected or type(own[key]) is not int:
            raise _other(file, f"{prefix}{key} is {own.get(key)!r}, expected {expected}")
    if own.get("vocab_size", spec.vocab) != spec.vocab:
        raise _other(file, f"{prefix}vocab_size is {own['vocab_size']!r}, expected {spec.vocab}")
    if not (type(length := own.get("context_length")) is int and length >= spec.context):
        raise _other(file, f"{prefix}context_length is {length!r}, expected {spec.context} or more")
    for key, value in own.items():
        if not _sound(value):
            raise _other(file, f"{prefix}{key} is {value!r}")
    if file.settings.get("split.count", 1) not in (0, 1):
        raise _other(file, "it is one of several files")
    table = file.tensors[_TABLE].shape if _TABLE in file.tensors else ()
    if table != (spec.hidden, spec.vocab):
        raise _other(file, f"{_TABLE} is {list(table)}, expected {[spec.hidden, spec.vocab]}")


def _sound(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST
    return isinstance(value, bool | GGUFArray) or (isfinite(value) and abs(value) < _MOST)


def _other(file: GGUF, why: str) -> BundleError:
    return BundleError(
        f"{file.path.name} is not the decoder that the manifest describes: {why}", hint="export the bundle again"
    )
