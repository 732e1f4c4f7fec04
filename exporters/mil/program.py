"""Walk a function of an ML program op by op.

In half precision each result is rounded as it is declared, and a result that does not fit is an error that names its
operation. In single precision nothing is rounded but what is stored: an error that is left is the program's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from edge.errors import EngineError, first_line
from exporters.mil import arithmetic, compressed, shaping
from exporters.mil.function import Argument, Function, Operation, Written
from exporters.mil.package import Package
from exporters.mil.values import NAMES, Type, Value, constant

Precision = Literal["fp16", "fp32"]
States = dict[str, Tensor]
_STATEFUL = ("read_state", "write_state")
SUPPORTED = {"const", "cast", *_STATEFUL, *arithmetic.TABLE, *shaping.TABLE, *compressed.TABLE}


class Program:
    """The functions of a package; constants are made once for all of them."""

    def __init__(self, package: Package, precision: Precision = "fp16") -> None:
        self.package = package
        self.precision: Precision = precision
        self._constants: dict[Any, Value] = {}
        self._functions: dict[str, Function] = {}

    def states(self, name: str) -> States:
        """Zeros for the states that a function declares, by name."""
        declared = self.function(name).states
        return {state: torch.zeros(_static(kind), dtype=self.dtype(kind.dtype)) for state, kind in declared.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Of its functions, as the package lists them."""
        return tuple(function.name for function in self.package.description.functions)

    def function(self, name: str) -> Function:
        """Raises EngineError when the program has none of this name, or uses an operation that is not known."""
        if name not in self._functions:
            if name not in self.package.program.functions:
                raise EngineError(f"{self.package.path.name} has no function {name!r}", hint="export the bundle again")
            self._functions[name] = Function(self.package.program.functions[name], self.package.path.name, SUPPORTED)
        return self._functions[name]

    @torch.inference_mode()
    def run(self, name: str, feeds: Mapping[str, Tensor], states: States | None = None) -> dict[str, Tensor]:
        """Outputs by name; `states` are changed. Raises EngineError, and BundleError on a damaged weight file."""
        function = self.function(name)
        if feeds.keys() != function.inputs.keys():
            raise EngineError(f"{name} takes {', '.join(function.inputs)}, and was fed {', '.join(feeds) or 'nothing'}")
        for key, declared in function.inputs.items():
            if not declared.fits(tuple(feeds[key].shape)) or feeds[key].dtype != declared.dtype:
                raise EngineError(f"{key} is {feeds[key].dtype} {list(feeds[key].shape)}, {name} takes {declared}")
        return _Walk(self, function, dict(feeds), states or {}).run()

    def dtype(self, declared: torch.dtype) -> torch.dtype:
        """What a declared type is held in."""
        return torch.float32 if declared == torch.float16 and self.precision == "fp32" else declared

    def constant(self, key: Any, make: Callable[[], Value]) -> Value:
        if key not in self._constants:
            self._constants[key] = make()
        return self._constants[key]


class _Walk:
    """One run of a function."""

    def __init__(self, program: Program, function: Function, values: dict[str, Any], states: States) -> None:
        self._program = program
        self._function = function
        self._values = values
        self._states = states
        self._of_states: set[str] = set()  # values that are a state's own memory

    def run(self) -> dict[str, Tensor]:
        for index, op in enumerate(self._function.operations):
            try:
                self._step(index, op)
            except EngineError as error:
                raise EngineError(f"{op.label}: {error.message}", hint=error.hint) from error
            except (RuntimeError, ValueError, TypeError, LookupError, MemoryError, AttributeError) as error:
                raise EngineError(f"{op.label} cannot be computed: {first_line(error)}") from error
            for name in self._function.done[index]:
                self._values.pop(name, None)
        for name in self._function.outputs:
            if not isinstance(given := self._values.get(name), Tensor):
                raise EngineError(f"the program gives no {name!r}")
            if given.is_floating_point():
                _require_finite(name, given, given.dtype)  # it may have been moved only
        return {name: self._values[name] for name in self._function.outputs}

    def _step(self, index: int, op: Operation) -> None:
        if op.type == "const":
            self._values[op.outputs[0]] = self._argument(op.arguments["val"][0])
        elif op.type in compressed.TABLE:
            self._values[op.outputs[0]] = self._compressed(op)
        elif op.type == "read_state":
            self._values[op.outputs[0]] = self._states[self._state(op)]
            self._of_states.add(op.outputs[0])
        elif op.type == "write_state":
            self._states[self._state(op)] = self._argument(op.arguments["data"][0])
        else:
            self._compute(index, op)

    def _compute(self, index: int, op: Operation) -> None:
        arguments: dict[str, Any] = {
            key: [self._argument(a) for a in bound] if key == "values" else self._argument(bound[0])
            for key, bound in op.arguments.items()
        }
        moves = op.type in shaping.TABLE
        if op.type == "cast":
            results: Any = _cast(**arguments)
        elif moves:
            own = index in self._function.in_place
            if op.type == "slice_update" and not own:
                arguments["x"] = arguments["x"].clone()
            results = shaping.TABLE[op.type](**arguments)
            if not own and not self._of_states.isdisjoint(op.names):
                results = results.clone() if isinstance(results, Tensor) else tuple(r.clone() for r in results)
        else:
            wide = {k: v if k == "weight" else _widened(v) for k, v in arguments.items()}
            results = arithmetic.TABLE[op.type](**wide)
        results = results if isinstance(results, tuple) else (results,)
        for name, declared, result in zip(op.outputs, op.declared, results, strict=True):
            if not declared.fits(tuple(result.shape)):
                raise EngineError(f"{name} is {list(result.shape)}, declared is {list(declared.shape)}")
            dtype = self._program.dtype(declared.dtype)
            if dtype.is_floating_point and not moves:  # what only moves was looked at when it was computed
                _require_finite(name, result, dtype)
            self._values[name] = result.to(dtype)

    def _state(self, op: Operation) -> str:
        name = op.source("input")
        if name is None or name not in self._states:
            raise EngineError(f"there is no state {name!r}")
        return name

    def _compressed(self, op: Operation) -> Value:
        blob = self._program.package.weights

        def make() -> Value:
            # Not kept: they serve once.
            given: dict[str, Any] = {
                k: constant(a.value, blob) if isinstance(a, Written) else self._argument(a) for k, (a,) in bound
            }
            found: Tensor = compressed.TABLE[op.type](**given)
            if not op.declared[0].fits(tuple(found.shape)):
                raise EngineError(f"a weight is {list(found.shape)}, declared is {list(op.declared[0].shape)}")
            return found.to(op.declared[0].dtype)  # in single precision too: it is how the weight is stored

        bound = op.arguments.items()
        places = [a.place if isinstance(a, Written) else None for _, listed in bound for a in listed]
        return make() if None in places else self._program.constant((op.type, *sorted(map(str, places))), make)

    def _argument(self, argument: Argument) -> Any:
        if isinstance(argument, str):
            return self._values[argument]
        if argument.place is None:
            return argument.immediate()
        return self._program.constant(argument.place, lambda: constant(argument.value, self._program.package.weights))


def _require_finite(name: str, result: Tensor, dtype: torch.dtype) -> None:
    """Rounding keeps the order of numbers: the least and the largest tell of all."""
    if not result.numel():
        return
    ends = torch.stack(torch.aminmax(result))
    if bool(torch.isfinite(ends.to(dtype)).all()):
        return
    if bool(torch.isnan(ends).any()):
        raise EngineError(f"{name} is not a number")
    raise EngineError(
        f"{name} overflows half precision: {float(ends.abs().max()):.4g}, and it ends at 65504",
        hint="export again with --calib DIR of pictures like these, so that it is computed in fp32",
    )


def _cast(x: Tensor, dtype: str) -> Tensor:
    if dtype not in NAMES:
        raise EngineError(f"a cast to {dtype} is not known")
    return x if NAMES[dtype].is_floating_point and x.is_floating_point() else x.to(NAMES[dtype])


def _widened(value: Any) -> Any:
    if isinstance(value, list):
        return [_widened(one) for one in value]
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _static(kind: Type) -> list[int]:
    if None in kind.shape:
        raise EngineError("a state without a fixed shape")
    return [size for size in kind.shape if size is not None]
