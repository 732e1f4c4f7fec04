"""Null engine: opens any part and computes nothing, to test a session and to measure its own cost.

It is never chosen by a plan; `edge.load(path, engine="null")` asks for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge.decoders.base import require_held
from edge.decoders.function_graph import require_names
from edge.types import Array, Decoder, EngineFacts, OpenOptions, PartFiles, Segment, Snapshot, TensorSpec

ENGINE: EngineFacts = {"formats": (), "package": "numpy"}

_POOL = 1 << 16


def version() -> str:
    return np.__version__


def open(part: PartFiles, options: OpenOptions) -> NullGraph | Decoder:
    """A decoder for a decoder's part that keeps its own KV cache, and declares none; else a graph."""
    if part.decoder is not None and not any(tensor.name.startswith("past_key_values.") for tensor in part.inputs):
        return NullDecoder(part.decoder.vocab)
    return NullGraph(part.inputs, part.outputs)


class NullGraph:
    """The numbers follow from the last row of the first input and from the length of the mask: another token, or
    another position, gives other logits, and the same ones give the same."""

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._takes, self._gives = ({spec.name for spec in specs} for specs in (inputs, outputs))
        self._pool = np.random.default_rng(0).standard_normal(_POOL, dtype=np.float32)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        into = into or {}
        require_names(self._takes, self._gives, feeds, into)
        start = self._start(feeds)
        fed = {id(array) for array in feeds.values()}
        axes: dict[str, int] | None = None
        found: dict[str, Array] = {}
        for spec in self._outputs:
            target = into.get(spec.name)
            if target is None:
                axes = axes or self._axes(feeds)
                target = np.empty([axes.get(d, 1) if isinstance(d, str) else d for d in spec.shape], spec.dtype)
            if id(target) not in fed:  # a cache that is updated in place stays as it is
                self._fill(target, start)
            found[spec.name] = target
        return found

    def _axes(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        return {
            axis: size
            for spec in self._inputs
            for axis, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
            if isinstance(axis, str)
        }

    def _start(self, feeds: Mapping[str, Array]) -> int:
        first = feeds[self._inputs[0].name]
        length = max((array.size for array in feeds.values() if array.ndim == 2), default=0)
        return (zlib.crc32(first[..., -1, :].tobytes()) + length) % _POOL

    def _fill(self, target: Array, start: int) -> None:
        flat = target.reshape(-1)
        if start + flat.size <= _POOL:
            flat[:] = self._pool[start : start + flat.size]
        else:
            flat[:] = np.resize(np.roll(self._pool, -start), flat.size)


class NullDecoder:
    """Remembers how far it is; the logits follow from that."""

    layout = "null"

    def __init__(self, vocab: int) -> None:
        self.position = 0
        self._pool = np.random.default_rng(0).standard_normal(_POOL + vocab, dtype=np.float32)
        self._vocab = vocab

    def extend(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        self.position += sum(map(len, segments))
        start = self.position % _POOL
        return self._pool[start : start + self._vocab]

    def rewind(self, position: int) -> None:
        require_held(position, self.position)
        self.position = position

    def snapshot(self) -> Snapshot:
        return Snapshot(self.layout, self.position, {})

    def restore(self, snapshot: Snapshot) -> None:
        self.position = snapshot.position
