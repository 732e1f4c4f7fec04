"""A function of an ML program as it is walked: what is known of it before it runs is found once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from edge.errors import EngineError
from exporters.mil.values import Type, Value, constant, place, tensor_type


class Written:
    """A constant that the program writes down. What lies in the weight file is not kept here."""

    def __init__(self, value: Any) -> None:
        self.value = value  # proto.MIL_pb2.Value
        self.place = place(value)
        self._made: Value | None = None

    def immediate(self) -> Value:
        if self._made is None:
            self._made = constant(self.value, None)
        return self._made


Argument = str | Written  # a value of an earlier operation, by its name, or a constant


@dataclass(frozen=True)
class Operation:
    type: str
    label: str
    arguments: Mapping[str, tuple[Argument, ...]]
    names: tuple[str, ...]  # of the values that it takes, each as often as it takes it
    outputs: tuple[str, ...]
    declared: tuple[Type, ...]  # of the outputs; a constant's is its own

    def source(self, key: str) -> str | None:
        """The name of the value that it takes there."""
        first = next(iter(self.arguments.get(key, ())), None)
        return first if isinstance(first, str) else None


class Function:
    """Raises EngineError on operations that are not among `supported`."""

    def __init__(self, declared: Any, package: str, supported: Set[str]) -> None:
        if declared.opset not in declared.block_specializations:
            raise EngineError(f"{package} has no block for its own operations {declared.opset!r}")
        block = declared.block_specializations[declared.opset]
        unknown = Counter(op.type for op in block.operations if op.type not in supported or op.blocks)
        if unknown:
            raise EngineError(
                f"{package} uses operations that the evaluator does not know: {', '.join(sorted(unknown))}",
                hint="it knows what edge export writes; on a Mac the package can be run",
            )
        self.operations = [_operation(op) for op in block.operations]
        self.outputs: Sequence[str] = block.outputs
        self.inputs: dict[str, Type] = {}
        self.states: dict[str, Type] = {}
        for entry in declared.inputs:
            if entry.type.WhichOneof("type") == "stateType":
                self.states[entry.name] = tensor_type(entry.type.stateType.wrappedType.tensorType)
            else:
                self.inputs[entry.name] = tensor_type(entry.type.tensorType)
        self._uses = Counter(name for op in self.operations for name in op.names)
        last = {name: index for index, op in enumerate(self.operations) for name in op.names}
        kept = set(self.outputs)
        # What is not needed any more after an operation.
        self.done = [{n for n in op.names if last[n] == i} - kept for i, op in enumerate(self.operations)]
        self.in_place = set(self._replacing())

    def _replacing(self) -> Iterator[int]:
        """Each slice_update that changes what was read of a state, where the state takes the result at once: then
        nobody else sees the change, and a memory of all layers need not be copied."""
        read: dict[str, str | None] = {}  # value -> the state that it was read from
        for index, (op, after) in enumerate(zip(self.operations, self.operations[1:], strict=False)):
            if op.type == "read_state":
                # A name that is given twice is nobody's.
                read |= {name: None if name in read else op.source("input") for name in op.outputs}
            if (op.type, after.type) != ("slice_update", "write_state"):
                continue
            source, state = op.source("x"), after.source("input")
            alone = source is not None and state is not None and self._uses[source] == 1
            if alone and read.get(str(source)) == state and after.source("data") in op.outputs:
                yield index


def _operation(op: Any) -> Operation:
    given = op.attributes["name"].immediateValue.tensor.strings.values if "name" in op.attributes else ()
    label = f"{op.type} {given[0]!r}" if given else str(op.type)
    arguments = {
        key: tuple(b.name if b.WhichOneof("binding") == "name" else Written(b.value) for b in argument.arguments)
        for key, argument in op.inputs.items()
    }
    if op.type == "const":
        arguments["val"] = (Written(op.attributes["val"]),)
    try:
        declared = [tensor_type(output.type.tensorType) for output in op.outputs if op.type != "const"]
    except EngineError as error:
        raise EngineError(f"{label}: {error.message}", hint=error.hint) from error
    names = tuple(a for bound in arguments.values() for a in bound if isinstance(a, str))
    return Operation(op.type, label, arguments, names, tuple(output.name for output in op.outputs), tuple(declared))
