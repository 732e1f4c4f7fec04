"""Graph over a plain function from arrays to arrays, and the check of what any graph is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from edge.errors import EngineError
from edge.types import Array, PartFiles, TensorSpec

Arrays = Mapping[str, Array]


class FunctionGraph:
    """`compute` takes arrays by name and gives new ones; it raises EngineError."""

    def __init__(self, part: PartFiles, compute: Callable[[Arrays], dict[str, Array]]) -> None:
        self._part = part
        self._compute = compute

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._part.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._part.outputs

    def run(self, feeds: Arrays, into: Arrays | None = None) -> dict[str, Array]:
        """See Graph. Raises EngineError when an array does not fit the graph, or the function fails."""
        into = into or {}
        require_arrays(self.inputs, self.outputs, feeds, into)
        outputs = self._compute(feeds)
        for name, array in into.items():
            array[...] = outputs[name]
        return {**outputs, **into}


def require_arrays(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], feeds: Arrays, into: Arrays) -> None:
    """Raises EngineError when a graph is fed other arrays than it takes, or asked for others than it gives. A named
    axis takes any length."""
    takes, gives = ({spec.name: spec for spec in specs} for specs in (inputs, outputs))
    require_names(takes.keys(), gives.keys(), feeds, into)
    for specs, arrays in ((takes, feeds), (gives, into)):
        for name, array in arrays.items():
            if not _fits(specs[name], array):
                raise misfit(specs[name], array)


def require_names(takes: AbstractSet[str], gives: AbstractSet[str], feeds: Arrays, into: Arrays) -> None:
    """Raises EngineError when the names are not those of a graph's inputs, or none of its outputs'."""
    if feeds.keys() != takes:
        raise EngineError(f"the graph takes {listed(takes)}, and was fed {listed(feeds)}")
    if not into.keys() <= gives:
        raise EngineError(f"the graph gives {listed(gives)}, and was asked for {listed(into)}")


def misfit(spec: TensorSpec, array: Array) -> EngineError:
    wanted, given = (f"{x.dtype} [{', '.join(map(str, x.shape))}]" for x in (spec, array))
    return EngineError(f"{spec.name} is {wanted} in the graph, and the array is {given}")


def _fits(spec: TensorSpec, array: Array) -> bool:
    return (
        array.dtype == spec.dtype
        and array.ndim == len(spec.shape)
        and all(isinstance(wanted, str) or wanted == size for wanted, size in zip(spec.shape, array.shape, strict=True))
    )


def listed(names: Iterable[str]) -> str:
    """The first of them, to be read by a person."""
    found = sorted(names)
    if not found:
        return "nothing"
    return ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
