"""Check that a GGUF file holds the decoder that the manifest describes.

The library ends the process on a setting that it did not expect (`GGML_ASSERT`): what is not known to be sound is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from math import isclose, isfinite
from pathlib import Path
from typing import Any

from edge.errors import BundleError
from edge.formats.gguf import GGUF
from edge.spec import DecoderSpec

ARCHITECTURES = "gguf_architectures.json"  # beside this file
_NEEDED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
)
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")  # one of them, as the norms are


def check_decoder(file: GGUF, spec: DecoderSpec) -> None:
    """Raises BundleError when the file's settings or tensors are not those of `spec`, or are not known to be sound."""
    sizes = (spec.layers, spec.heads, spec.kv_heads, spec.head_dim, spec.hidden, spec.vocab, spec.context)
    if min(sizes) < 1 or spec.heads % spec.kv_heads:
        raise _other(file, f"that has sizes of {sizes}")
    if file.architecture not in _architectures():
        raise _other(file, f"its architecture is {file.architecture!r}, which no export writes")
    prefix = f"{file.architecture}."
    own = {k.removeprefix(prefix): v for k, v in file.settings.items() if k.startswith(prefix)}
    for key in _NEEDED:
        if key not in own:
            raise _other(file, f"it does not set {prefix}{key}")
    if not any(key in own for key in _EPSILONS):
        raise _other(file, f"it does not set {' or '.join(prefix + key for key in _EPSILONS)}")
    implied = {
        "attention.head_count_kv": own["attention.head_count"],
        "attention.key_length": spec.hidden // spec.heads,
        "attention.value_length": spec.hidden // spec.heads,
        "rope.freq_base": 10000.0,
    }
    exact, bounds = _exact(spec), _bounds(spec)
    for key, value in (implied | own).items():
        if key in exact and (type(value) is not int or value != exact[key]):
            raise _other(file, f"{prefix}{key} is {value!r}, expected {exact[key]}")
        if key not in exact and not (key in bounds and bounds[key](value)):
            raise _other(file, f"{prefix}{key} is {value!r}")
    if file.settings.get("split.count", 1) not in (0, 1):
        raise _other(file, "it is one of several files")
    _check_tensors(file, spec)


@cache
def _architectures() -> frozenset[str]:
    """Those that exports write. The library knows a hundred, and ends the process on some under our settings."""
    return frozenset(json.loads(Path(__file__).with_name(ARCHITECTURES).read_bytes()))


def _check_tensors(file: GGUF, spec: DecoderSpec) -> None:
    table = (spec.hidden, spec.vocab)
    for name, needed in (("token_embd.weight", True), ("output.weight", False)):
        shape = file.tensors[name].shape if name in file.tensors else None
        if shape != table and (needed or shape is not None):
            raise _other(file, f"{name} is {list(shape or ())}, expected {list(table)}")
    for name, tensor in file.tensors.items():
        # The library adds and multiplies by these without looking at how they are stored.
        if len(tensor.shape) == 1 and tensor.kind != "F32":
            raise _other(file, f"{name} is stored as {tensor.kind}, expected F32")


def _exact(spec: DecoderSpec) -> Mapping[str, int]:
    return {
        "block_count": spec.layers,
        "embedding_length": spec.hidden,
        "vocab_size": spec.vocab,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "rope.dimension_count": spec.rope_dim or spec.head_dim,
    }


def _bounds(spec: DecoderSpec) -> Mapping[str, Callable[[Any], bool]]:
    return {
        "context_length": lambda v: _whole(v) and v >= spec.context,
        "feed_forward_length": _whole,
        **dict.fromkeys(_EPSILONS, lambda v: v == 0 or (_positive(v) and v < 1)),
        "use_parallel_residual": lambda v: v is False,
        "attention.sliding_window": lambda v: _whole(v) and v >= spec.context,
        **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), _positive),
        "rope.freq_base": lambda v: _positive(v) and isclose(v, spec.rope_theta, rel_tol=1e-6),
    }


def _whole(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1 << 24


def _positive(value: Any) -> bool:
    return type(value) is float and isfinite(value) and value > 0


def _other(file: GGUF, why: str) -> BundleError:
    return BundleError(
        f"{file.path.name} is not the decoder that the manifest describes: {why}", hint="export the bundle again"
    )
