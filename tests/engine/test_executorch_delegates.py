"""What an ExecuTorch program hands to XNNPACK: its delegate looks at no bound, neither of a graph nor of a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import edge_executorch
import numpy as np
import pytest
import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as schema
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.exir.schema import DelegateCall, Tensor

from edge.engines import open_part
from edge.errors import BundleError, EngineError
from edge.formats import executorch, xnnpack_graph
from edge.formats.flatbuffers import Damage
from edge.types import OpenOptions, PartFiles, TensorSpec
from exporters.formats.executorch import lower
from exporters.formats.executorch.lower import Method

NONE = 2**32 - 1
FLOAT, GROUPS, TOKENS = 1, 10, 9  # of XNNDatatype
NAMED = {"weight": 4 * 8 * 64, "bias": 4 * 8, "packed": 8 * 32, "scales": 2 * 8 * 2}
Change = Callable[[Any], None]


def tensor(number: int, dims: list[int], kind: int = FLOAT, data: int = 0, external: int = NONE) -> Any:
    flags = {NONE: 0}.get(external, 1)
    return schema.XNNTensorValue(schema.XNNDatatype(kind), len(dims), dims, data, external, flags, number)


def graph() -> Any:
    """x [2, 64] -> turned [64, 2] and back, times a weight [8, 64] of floats and one of 4 bits, and both added."""
    rounded = schema.XNNQuantizedTensorValue(tensor(4, [2, 64], TOKENS), schema.PerTokenDynamicQuant(1))
    scales = schema.PerChannelGroupQuant([], 0, 32, None, 4, 16)
    packed = schema.XNNQuantizedTensorValue(tensor(5, [8, 64], GROUPS, data=3), scales)
    values = [
        tensor(0, [2, 64], external=0),
        tensor(1, [64, 2]),
        tensor(2, [8, 64], data=1),
        tensor(3, [8], data=2),
        rounded,
        packed,
        tensor(6, [2, 64]),
        tensor(7, [2, 8]),
        tensor(8, [2, 8]),
        tensor(9, [2, 8], external=1),
    ]
    nodes = [
        schema.XNNStaticTranspose(2, [1, 0], 0, 1, 0),
        schema.XNNStaticTranspose(2, [1, 0], 1, 6, 0),
        schema.XNNFullyConnected(6, 2, 3, 7, 0),
        schema.XNNConvert(0, 4, 0),
        schema.XNNFullyConnected(4, 5, NONE, 8, 0),
        schema.XNNAdd(7, 8, 9, 0),
    ]
    data = [(0, ""), *((-1, name) for name in NAMED)]
    return schema.XNNGraph(
        version="0",
        xnodes=[schema.XNode(node, 0) for node in nodes],
        xvalues=[schema.XValue(value) for value in values],
        num_externs=2,
        input_ids=[0],
        output_ids=[9],
        constant_data=[schema.ConstantDataOffset(2**64 - 1 if at else 0, NAMED.get(key, 0), key) for at, key in data],
    )


def ports(changed: Any, named: dict[str, int] = NAMED) -> Any:
    blob = serialize_xnnpack_binary(changed, bytearray())
    return xnnpack_graph.ports(np.frombuffer(blob, np.uint8), named)


def test_the_arguments_of_a_graph() -> None:
    assert ports(graph()) == (((2, 64), FLOAT, False), ((2, 8), FLOAT, True))


def test_what_packed_weights_are_known_by() -> None:
    """The name of the weight, and after it that of the bias: as the library looks for them."""
    blob = np.frombuffer(serialize_xnnpack_binary(graph(), bytearray()), np.uint8)
    assert xnnpack_graph.packed(blob, NAMED) == [("weightbias", 2, (8, 64), FLOAT), ("packed", 2, (8, 64), GROUPS)]


def node(changed: Any, number: int) -> Any:
    return changed.xnodes[number].xnode_union


def value(changed: Any, number: int) -> Any:
    found = changed.xvalues[number].xvalue_union
    return getattr(found, "tensor_value", found)


def reads_nothing(changed: Any) -> None:
    node(changed, 2).input1_id = 99


def writes_nothing(changed: Any) -> None:
    node(changed, 2).output_id = 99


def reads_later(changed: Any) -> None:
    node(changed, 2).input1_id = 8


def no_weight(changed: Any) -> None:
    node(changed, 2).filter_id = NONE


def writes_constant(changed: Any) -> None:
    node(changed, 2).output_id = 3


def writes_twice(changed: Any) -> None:
    node(changed, 4).output_id = 7


def writes_input(changed: Any) -> None:
    node(changed, 0).output_id = 0


def short_turn(changed: Any) -> None:
    node(changed, 0).perm = [1]


def more_axes(changed: Any) -> None:
    value(changed, 1).num_dims = 6


def seven_axes(changed: Any) -> None:
    value(changed, 1).num_dims, value(changed, 1).dims = 7, [1] * 7


def long_weight(changed: Any) -> None:
    value(changed, 2).dims = [9, 64]


def long_packed(changed: Any) -> None:
    value(changed, 5).dims = [9, 64]


def other_data(changed: Any) -> None:
    value(changed, 2).constant_buffer_idx = 99


def few_scales(changed: Any) -> None:
    changed.xvalues[5].xvalue_union.quant_params.num_scales = 8


def scales_of_no_axis(changed: Any) -> None:
    changed.xvalues[5].xvalue_union.quant_params.channel_dim = 7


def tokens_of_no_axis(changed: Any) -> None:
    changed.xvalues[4].xvalue_union.quant_params.num_nonbatch_dims = 3


def data_of_no_name(changed: Any) -> None:
    changed.constant_data[1].named_key = "nothing"


def data_beyond(changed: Any) -> None:
    changed.constant_data[1] = schema.ConstantDataOffset(1 << 20, 64 * 32)


def no_input(changed: Any) -> None:
    changed.input_ids = []


def strange_input(changed: Any) -> None:
    changed.input_ids = [77]


def far_argument(changed: Any) -> None:
    value(changed, 9).external_id = 7


def same_numbers(changed: Any) -> None:
    value(changed, 8).id_out = 7


def other_count(changed: Any) -> None:
    changed.num_externs = 9


def constant_argument(changed: Any) -> None:
    value(changed, 0).constant_buffer_idx = 1


def result_of_nothing(changed: Any) -> None:
    changed.xnodes.pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reads_nothing, "refers to value 99"),
        (writes_nothing, "refers to value 99"),
        (strange_input, "refers to value 77"),
        (no_weight, f"refers to value {NONE}"),
        (reads_later, "reads what nothing wrote"),
        (writes_constant, "writes what is there already"),
        (writes_twice, "writes what is there already"),
        (writes_input, "writes what is there already"),
        (short_turn, "node with more or fewer sizes"),
        (more_axes, "more or fewer sizes than axes"),
        (seven_axes, "more or fewer sizes than axes"),
        (long_weight, "value of 2304 bytes, whose data has fewer"),
        (long_packed, "value of 288 bytes, whose data has fewer"),
        (other_data, "with data, that is not there"),
        (few_scales, "more or fewer scales"),
        (scales_of_no_axis, "an axis that is not there"),
        (tokens_of_no_axis, "scales of more axes"),
        (data_of_no_name, "data that is not there"),
        (data_beyond, "data that is not there"),
        (no_input, "are not its inputs and outputs"),
        (far_argument, "are not numbered"),
        (other_count, "are not numbered"),
        (same_numbers, "two of a graph's values have one number"),
        (constant_argument, "a graph's argument is a constant"),
        (result_of_nothing, "result that nothing wrote"),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
def test_what_is_not_there_is_told(change: Change, message: str) -> None:
    changed = graph()
    change(changed)
    with pytest.raises(Damage, match=message):
        ports(changed)


def test_less_data_than_is_told() -> None:
    with pytest.raises(Damage, match="data that is not there"):
        ports(graph(), {**NAMED, "weight": 16})


def test_any_byte_is_read_or_told() -> None:
    """Never another error."""
    blob, random = np.frombuffer(serialize_xnnpack_binary(graph(), bytearray()), np.uint8), np.random.default_rng(5)
    told = 0
    for _ in range(800):
        changed = blob.copy()
        changed[random.integers(len(blob), size=random.integers(1, 4))] = random.integers(256)
        try:
            xnnpack_graph.ports(changed, NAMED)
            xnnpack_graph.packed(changed, NAMED)
        except Damage:
            told += 1
    assert told > 200


class Halves(torch.nn.Module):
    """Two graphs of XNNPACK's, with a kernel of the portable library between them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x + x, 1) * 2 + x


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("halves") / "halves.pte"
    lower.write(path, {"run": Method(Halves(), (torch.zeros(2, 3),))}, {}, lambda done: None)
    return path


def calls(plan: Any) -> list[Any]:
    steps = (step.instr_args for step in plan.chains[0].instructions)
    return [step for step in steps if isinstance(step, DelegateCall)]


def fewer(plan: Any) -> None:
    calls(plan)[1].args.pop()


def none(plan: Any) -> None:
    calls(plan)[0].args.clear()


def more(plan: Any) -> None:
    calls(plan)[0].args.append(calls(plan)[0].args[0])


def other(plan: Any) -> None:
    calls(plan)[0].delegate_index = calls(plan)[1].delegate_index


def wide(plan: Any) -> None:
    plan.values[calls(plan)[0].args[-1]].val.sizes = [2, 1]


def bytes_only(plan: Any) -> None:
    plan.values[calls(plan)[0].args[-1]].val.scalar_type = 1


def into_an_input(plan: Any) -> None:
    calls(plan)[0].args[-1] = plan.inputs[0]


def no_tensor(plan: Any) -> None:
    calls(plan)[0].args[0] = next(at for at, v in enumerate(plan.values) if not isinstance(v.val, Tensor))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fewer, "is called with [0-9] arguments, and takes [0-9]"),
        (none, "is called with 0 arguments, and takes 2"),
        (more, "is called with 3 arguments, and takes 2"),
        (other, "is called with 2 arguments, and takes [34]"),
        (wide, r"is given a tensor of \[2, 1\], and takes \[2, 3\]"),
        (bytes_only, "numbers that are not float32"),
        (into_an_input, "whose result has no memory of its own"),
        (no_tensor, "is given what is no tensor"),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
def test_a_call_that_does_not_fit_its_graph_is_told(
    program: Path, tmp_path: Path, change: Change, message: str
) -> None:
    assert executorch.read(program).methods
    file = deserialize_pte_binary(program.read_bytes())
    change(next(plan for plan in file.program.execution_plan if plan.name == "run"))
    path = tmp_path / "changed.pte"
    path.write_bytes(bytes(serialize_pte_binary(file, extract_delegate_segments=True)))
    with pytest.raises(BundleError, match=message) as caught:
        executorch.read(path)
    assert "changed.pte" in caught.value.message


def test_a_part_for_another_backend_is_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such programs lie beside the parts, for other tools; no reader of ours looks into them."""
    path, ports = tmp_path / "vision.pte", (TensorSpec("x", "float32", (2, 3)),)
    lower.write(path, {"vision_encoder": Method(Halves(), (torch.zeros(2, 3),))}, {}, lambda done: None)
    file = deserialize_pte_binary(path.read_bytes())
    file.program.execution_plan[0].delegates[0].id = "OtherBackend"
    path.write_bytes(bytes(serialize_pte_binary(file, extract_delegate_segments=True)))
    assert executorch.read(path).methods["vision_encoder"].delegates[0] == "OtherBackend"
    part = PartFiles("executorch", "fp32", ("vision",), (path,), ports, ports)
    options = OpenOptions(threads=1, context=8)
    with pytest.raises(EngineError, match="needs OtherBackend"):
        open_part(part, "executorch_native", options)
    monkeypatch.setattr(edge_executorch, "backends", lambda: ["XnnpackBackend", "OtherBackend"])
    with pytest.raises(BundleError, match=r"vision\.pte hands work to OtherBackend"):
        open_part(part, "executorch_native", options)
