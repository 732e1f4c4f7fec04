"""Several programs become one file with the methods of all, as ExecuTorch's own runner opens it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir._serialize._program import PTEFile, deserialize_pte_binary, serialize_pte_binary
from executorch.exir.schema import ExecutionPlan, Program, Tensor


def join(paths: Sequence[Path], path: Path) -> None:
    """Write `path` from programs without a method in common. Weights that they have in common are stored once."""
    named = NamedDataStore()
    whole: Program | None = None
    for other in (deserialize_pte_binary(source.read_bytes()) for source in paths):
        if other.named_data is not None:
            named.merge_named_data_store(other.named_data)
        if whole is None:
            whole = other.program
        else:
            _append(whole, other.program)
    binary = serialize_pte_binary(
        PTEFile(program=whole, named_data=named.get_named_data_store_output()), extract_delegate_segments=True
    )
    with path.open("wb") as file:
        binary.write_to_file(file)


def _append(whole: Program, other: Program) -> None:
    """Constants and delegates are known by their numbers in a program, which go on where the first one's end."""
    constants, delegates = len(whole.constant_buffer) - 1, len(whole.backend_delegate_data)  # 0: no constant
    for plan in other.execution_plan:
        for tensor in _constants(plan):
            tensor.data_buffer_idx += constants
        for delegate in plan.delegates:
            delegate.processed.index += delegates
    whole.execution_plan += other.execution_plan
    whole.constant_buffer += other.constant_buffer[1:]
    whole.backend_delegate_data += other.backend_delegate_data


def _constants(plan: ExecutionPlan) -> list[Tensor]:
    tensors = [value.val for value in plan.values if isinstance(value.val, Tensor)]
    return [tensor for tensor in tensors if tensor.data_buffer_idx > 0]
