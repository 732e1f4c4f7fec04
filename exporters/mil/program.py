"""Walk a function of an ML program op by op.

In half precision each result is rounded as it is declared, and a result that does not fit is an error that names its
operation. In single precision nothing is rounded but what is stored: an error that is left is the program's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from edge.errors import EngineError
from exporters.mil import arithmetic, compressed, shaping
from exporters.mil.package import Package
from exporters.mil.values import NAMES, Type, Value, constant, place, tensor_type

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
        self._functions: dict[str, _Function] = {}

    def states(self, name: str) -> States:
        """Zeros for the states that a function declares, by name."""
        declared = self.function(name).states
        return {state: torch.zeros(_static(kind), dtype=self.dtype(kind.dtype)) for state, kind in declared.items()}

    def function(self, name: str) -> _Function:
        """Raises EngineError when the program has none of this name, or uses an operation that is not known."""
        if name not in self._functions:
            if name not in self.package.program.functions:
                raise EngineError(f"{self.package.path.name} has no function {name!r}", hint="export the bundle again")
            self._functions[name] = _Function(self.package.program.functions[name], self.package.path.name)
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


class _Function:
    """One function, with what is known of it before it runs: when each value is used last."""

    def __init__(self, declared: Any, package: str) -> None:
        if declared.opset not in declared.block_specializations:
            raise EngineError(f"{package} has no block for its own operations {declared.opset!r}")
        block = declared.block_specializations[declared.opset]
        self.operations: Sequence[Any] = block.operations
        self.outputs: Sequence[str] = block.outputs
        self.inputs: dict[str, Type] = {}
        self.states: dict[str, Type] = {}
        for entry in declared.inputs:
            if entry.type.WhichOneof("type") == "stateType":
                self.states[entry.name] = tensor_type(entry.type.stateType.wrappedType.tensorType)
            else:
                self.inputs[entry.name] = tensor_type(entry.type.tensorType)
        unknown = Counter(op.type for op in self.operations if op.type not in SUPPORTED or op.blocks)
        if unknown:
            raise EngineError(
                f"{package} uses operations that the evaluator does not know: {', '.join(sorted(unknown))}",
                hint="it knows what edge export writes; on a Mac the package can be run",
            )
        self.last_use: dict[str, int] = {}
        for index, op in enumerate(self.operations):
            for name in _names(op):
                self.last_use[name] = index
        self.in_place = {i for i in range(len(self.operations) - 1) if self._replaces(i)}

    def _replaces(self, index: int) -> bool:
        """Whether a slice_update changes what was read of a state, and the state takes the result at once: then nobody
        else sees the change, and a memory of all layers need not be copied."""
        op, after = self.operations[index], self.operations[index + 1]
        if op.type != "slice_update" or after.type != "write_state":
            return False
        source = op.inputs["x"].arguments[0].name
        reads = [o for o in self.operations[:index] if o.outputs and o.outputs[0].name == source]
        return (
            len(reads) == 1
            and reads[0].type == "read_state"
            and reads[0].inputs["input"].arguments[0].name == after.inputs["input"].arguments[0].name
            and after.inputs["data"].arguments[0].name == op.outputs[0].name
            and self.last_use[source] == index
            and self._uses(source) == 1
        )

    def _uses(self, name: str) -> int:
        return sum(_names(op).count(name) for op in self.operations)


class _Walk:
    """One run of a function."""

    def __init__(self, program: Program, function: _Function, values: dict[str, Any], states: States) -> None:
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
                raise EngineError(f"{_label(op)}: {error.message}", hint=error.hint) from error
            except (RuntimeError, ValueError, TypeError, LookupError, MemoryError, AttributeError) as error:
                raise EngineError(f"{_label(op)} cannot be computed: {_first_line(error)}") from error
            for name in _names(op):
                if self._function.last_use[name] == index and name not in self._function.outputs:
                    self._values.pop(name, None)
        for name in self._function.outputs:
            if not isinstance(self._values.get(name), Tensor):
                raise EngineError(f"the program gives no {name!r}")
        return {name: self._values[name] for name in self._function.outputs}

    def _step(self, index: int, op: Any) -> None:
        if op.type == "const":
            self._values[op.outputs[0].name] = self._const(op.attributes["val"])
        elif op.type in compressed.TABLE:
            self._values[op.outputs[0].name] = self._compressed(op)
        elif op.type == "read_state":
            self._values[op.outputs[0].name] = self._state(op)
            self._of_states.add(op.outputs[0].name)
        elif op.type == "write_state":
            self._state(op)
            self._states[op.inputs["input"].arguments[0].name] = self._arguments(op, ("data",))["data"]
        else:
            self._compute(index, op)

    def _compute(self, index: int, op: Any) -> None:
        arguments = self._arguments(op)
        if op.type == "cast":
            results: Any = (_cast(**arguments),)
        elif op.type in shaping.TABLE:
            if op.type == "slice_update" and index not in self._function.in_place:
                arguments["x"] = arguments["x"].clone()
            results = shaping.TABLE[op.type](**arguments)
            if self._of_states & set(_names(op)) and index not in self._function.in_place:
                results = results.clone() if isinstance(results, Tensor) else tuple(r.clone() for r in results)
        else:
            wide = {k: v.float() if _is_half(v) and k != "weight" else v for k, v in arguments.items()}
            results = arithmetic.TABLE[op.type](**wide)
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(op.outputs, results, strict=True):
            self._values[output.name] = self._stored(output, result)

    def _stored(self, output: Any, result: Tensor) -> Tensor:
        declared = tensor_type(output.type.tensorType)
        if not declared.fits(tuple(result.shape)):
            raise EngineError(f"{output.name} is {list(result.shape)}, declared is {list(declared.shape)}")
        rounded = result.to(self._program.dtype(declared.dtype))
        if declared.dtype.is_floating_point and not bool(torch.isfinite(rounded).all()):
            if bool(torch.isnan(result).any()):
                raise EngineError(f"{output.name} is not a number")
            raise EngineError(
                f"{output.name} overflows half precision: {float(result.abs().max()):.4g}, and it ends at 65504",
                hint="export again with --calib DIR of pictures like these, so that it is computed in fp32",
            )
        return rounded

    def _state(self, op: Any) -> Tensor:
        name = op.inputs["input"].arguments[0].name
        if name not in self._states:
            raise EngineError(f"there is no state {name!r}")
        return self._states[name]

    def _const(self, value: Any) -> Value:
        offset = place(value)
        make = lambda: constant(value, self._program.package.weights)  # noqa: E731
        return make() if offset is None else self._program.constant(offset, make)

    def _compressed(self, op: Any) -> Value:
        declared = tensor_type(op.outputs[0].type.tensorType)

        def make() -> Value:
            found: Tensor = compressed.TABLE[op.type](**self._arguments(op))
            if not declared.fits(tuple(found.shape)):
                raise EngineError(f"a weight is {list(found.shape)}, declared is {list(declared.shape)}")
            return found.to(declared.dtype)  # in single precision too: it is how the weight is stored

        offsets = [place(binding.value) for argument in op.inputs.values() for binding in argument.arguments]
        return make() if None in offsets else self._program.constant((op.type, *sorted(map(str, offsets))), make)

    def _arguments(self, op: Any, wanted: Sequence[str] = ()) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, argument in op.inputs.items():
            if wanted and key not in wanted:
                continue
            listed = [
                self._values[binding.name]
                if binding.WhichOneof("binding") == "name"
                else constant(binding.value, self._program.package.weights)
                for binding in argument.arguments
            ]
            found[key] = listed if key == "values" else listed[0]
        return found


def _cast(x: Tensor, dtype: str) -> Tensor:
    if dtype not in NAMES:
        raise EngineError(f"a cast to {dtype} is not known")
    return x if NAMES[dtype].is_floating_point and x.is_floating_point() else x.to(NAMES[dtype])


def _names(op: Any) -> list[str]:
    return [b.name for argument in op.inputs.values() for b in argument.arguments if b.WhichOneof("binding") == "name"]


def _label(op: Any) -> str:
    name = op.attributes["name"].immediateValue.tensor.strings.values if "name" in op.attributes else ()
    return f"{op.type} {name[0]!r}" if name else str(op.type)


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float16


def _static(kind: Type) -> list[int]:
    if None in kind.shape:
        raise EngineError("a state without a fixed shape")
    return [size for size in kind.shape if size is not None]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
