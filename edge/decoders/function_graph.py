"""Graph over a plain function from arrays to arrays, and the check of what a graph is fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edge.types import Array, PartFiles, TensorSpec


class FunctionGraph:
    """`compute` takes arrays by name and gives new ones; it raises EngineError."""

    def __init__(self, part: PartFiles, compute: Callable[[Mapping[str, Array]], dict[str, Array]]) -> None:
        self._part = part
        self._compute = compute

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._part.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._part.outputs

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """See Graph."""
        outputs = self._compute(feeds)
        for name, array in (into or {}).items():
            array[...] = outputs[name]
        return {**outputs, **(into or {})}
