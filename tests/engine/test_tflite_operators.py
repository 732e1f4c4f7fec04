"""What an operator of a TFLite file takes: kernels follow what is left out, and end the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edge.engines import open_part
from edge.errors import BundleError
from edge.formats import tflite
from edge.formats.tflite_operators import OPERATORS
from edge.types import OpenOptions, PartFiles, TensorSpec
from exporters.tflite_model import Graph, Model

NUMBERS = {operator.name: number for number, operator in OPERATORS.items()}
Change = Callable[[Any], None]


def write(path: Path) -> PartFiles:
    """x `[1, 8, 8, 4]` -> y `[1, 4]`, with one operator of most kinds."""
    model = Model()
    graph = Graph(model, "run")
    random = np.random.default_rng(3)

    def constant(name: str, *shape: int, dtype: str = "float32") -> int:
        return graph.stored(name, random.normal(size=shape).astype(dtype))

    def op(name: str, inputs: list[int], *shape: int, table: str | None = None, **options: Any) -> int:
        return graph.op(name, inputs, [shape], options, table=table)[0]

    x = graph.inputs["x"] = graph.tensor((1, 8, 8, 4), name="x")
    x = op("PAD", [x, graph.constant([[0, 0], [1, 1], [1, 1], [0, 0]])], 1, 10, 10, 4, table="PadOptions")
    filters = {"padding": 1, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    taken = [x, constant("filters", 4, 3, 3, 4), constant("bias", 4)]
    x = op("CONV_2D", taken, 1, 8, 8, 4, table="Conv2DOptions", **filters)
    taken = [x, constant("each", 1, 3, 3, 4), constant("each_bias", 4)]
    x = op("DEPTHWISE_CONV_2D", taken, 1, 6, 6, 4, table="DepthwiseConv2DOptions", depthMultiplier=1, **filters)
    windows = {"padding": 1, "strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}
    x = op("AVERAGE_POOL_2D", [x], 1, 3, 3, 4, table="Pool2DOptions", **windows)
    x = op("RESHAPE", [x, graph.constant([1, 9, 4])], 1, 9, 4, table="ReshapeOptions", newShape=[1, 9, 4])
    turned = op("TRANSPOSE", [x, graph.constant([0, 2, 1])], 1, 4, 9, table="TransposeOptions")
    x = op("BATCH_MATMUL", [turned, x], 1, 4, 4, table="BatchMatMulOptions")
    x = op("SOFTMAX", [x], 1, 4, 4, table="SoftmaxOptions", beta=1.0)
    cut = [graph.constant(places) for places in ([0, 0, 0], [1, 2, 4], [1, 1, 1])]
    half = op("STRIDED_SLICE", [x, *cut], 1, 2, 4, table="StridedSliceOptions", endMask=5)
    x = op("CONCATENATION", [half, half], 1, 4, 4, table="ConcatenationOptions", axis=1)
    x = op("ADD", [x, constant("more", 1, 4, 4)], 1, 4, 4, table="AddOptions")
    x = op("MUL", [x, x], 1, 4, 4, table="MulOptions")
    x = op("SUB", [x, constant("less", 4)], 1, 4, 4, table="SubOptions")
    for name, table in (("LOGISTIC", None), ("RSQRT", None), ("RELU", None), ("HARD_SWISH", "HardSwishOptions")):
        x = op(name, [x], 1, 4, 4, table=table)
    x = op("GELU", [x], 1, 4, 4, table="GeluOptions")
    wide = op("DEQUANTIZE", [constant("half", 4, 4, dtype="float16")], 4, 4, table="DequantizeOptions")
    kept = {"keepNumDims": True}
    (x,) = graph.op("FULLY_CONNECTED", [x, wide, -1], [(1, 4, 4)], kept, table="FullyConnectedOptions", version=5)
    graph.outputs["y"] = y = op("MEAN", [x, graph.constant([1])], 1, 4, table="ReducerOptions")
    graph.tensors[y].name = "y"
    model.add(graph)
    model.save(path, lambda done: None)
    ports = (TensorSpec("x", "float32", (1, 8, 8, 4)),), (TensorSpec("y", "float32", (1, 4)),)
    return PartFiles("tflite", "fp32", ("vision",), (path,), *ports)


def changed(part: PartFiles, change: Change) -> Path:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(part.files[0].read_bytes()))
    for one in (model.subgraphs[0], *model.subgraphs[0].operators):
        one.inputs, one.outputs = list(one.inputs), list(one.outputs)
    change(model)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    part.files[0].write_bytes(builder.Output())
    return part.files[0]


def operator(model: Any, name: str) -> Any:
    codes = [code.builtinCode for code in model.operatorCodes]
    return next(op for op in model.subgraphs[0].operators if codes[op.opcodeIndex] == NUMBERS[name])


@pytest.fixture
def part(tmp_path: Path) -> PartFiles:
    return write(tmp_path / "a.tflite")


def test_each_kind_is_taken_and_runs(part: PartFiles) -> None:
    graph: Any = open_part(part, "litert", OpenOptions(threads=1, context=8))
    assert graph.run({"x": np.ones((1, 8, 8, 4), np.float32)})["y"].shape == (1, 4)
    assert set(tflite.read(changed(part, lambda model: None)).signatures) == {"run"}


def test_there_is_a_case_of_each_kind(part: PartFiles) -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(part.files[0].read_bytes()))
    assert {code.builtinCode for code in model.operatorCodes} == set(OPERATORS)


INPUTS = [(o.name, place) for o in OPERATORS.values() for place, letter in enumerate(o.takes) if letter != "b"]


@pytest.mark.parametrize(("name", "place"), INPUTS)
def test_an_input_that_is_left_out_is_told(part: PartFiles, name: str, place: int) -> None:
    def leave_out(model: Any) -> None:
        operator(model, name).inputs[place] = -1

    with pytest.raises(BundleError, match=f"a {name} without its input {place}|reads what nothing wrote"):
        tflite.read(changed(part, leave_out))


@pytest.mark.parametrize("name", NUMBERS)
def test_more_or_fewer_inputs_are_told(part: PartFiles, name: str) -> None:
    for change in (lambda inputs: inputs[:0], lambda inputs: inputs[:-1], lambda inputs: inputs * 6):

        def cut(model: Any, change: Callable[[list[int]], list[int]] = change) -> None:
            operator(model, name).inputs = change(operator(model, name).inputs)

        with pytest.raises(BundleError, match=f"a {name} of [0-9]+ inputs, where it takes [1-4]"):
            tflite.read(changed(part, cut))
        write(part.files[0])


def results(model: Any) -> None:
    operator(model, "ADD").outputs = []


def options(model: Any) -> None:
    operator(model, "ADD").builtinOptionsType, operator(model, "ADD").builtinOptions = 0, None


def own_result(model: Any) -> None:
    operator(model, "ADD").inputs[0] = operator(model, "ADD").outputs[0]


def later(model: Any) -> None:
    operator(model, "TRANSPOSE").inputs[0] = operator(model, "MEAN").outputs[0]


def constant_result(model: Any) -> None:
    operator(model, "ADD").outputs[0] = operator(model, "ADD").inputs[1]


def twice(model: Any) -> None:
    operator(model, "MUL").outputs[0] = operator(model, "ADD").outputs[0]


def made_places(model: Any) -> None:
    operator(model, "TRANSPOSE").inputs[1] = operator(model, "RESHAPE").outputs[0]


def other_places(model: Any) -> None:
    operator(model, "TRANSPOSE").inputs[1] = operator(model, "MEAN").inputs[1]


def short_bias(model: Any) -> None:
    operator(model, "FULLY_CONNECTED").inputs[2] = operator(model, "MEAN").inputs[1]


def whole_numbers(model: Any) -> None:
    operator(model, "SUB").inputs[1] = operator(model, "MEAN").inputs[1]


def half_numbers(model: Any) -> None:
    operator(model, "SUB").inputs[1] = operator(model, "DEQUANTIZE").inputs[0]


def narrow_weights(model: Any) -> None:
    operator(model, "FULLY_CONNECTED").inputs[1] = operator(model, "SUB").inputs[1]


def other_filters(model: Any) -> None:
    operator(model, "CONV_2D").inputs[2] = operator(model, "ADD").inputs[1]


def given_output(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.outputs[0] = model.signatureDefs[0].outputs[0].tensorIndex = graph.inputs[0]


def variable(model: Any) -> None:
    model.subgraphs[0].tensors[3].isVariable = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (results, "more or fewer results than one"),
        (options, "without its options"),
        (own_result, "a ADD reads what nothing wrote before it"),
        (later, "a TRANSPOSE reads what nothing wrote before it"),
        (constant_result, "whose result is a constant"),
        (twice, "two operators have one result"),
        (made_places, "a TRANSPOSE whose input 1 is not of the kind"),
        (other_places, "a TRANSPOSE of shapes that do not go together"),
        (short_bias, "a FULLY_CONNECTED whose input 2 is not of the kind"),
        (whole_numbers, "a SUB whose input 1 is not of the kind"),
        (half_numbers, "a SUB whose input 1 is not of the kind"),
        (narrow_weights, "a FULLY_CONNECTED of shapes that do not go together"),
        (other_filters, "a CONV_2D of shapes that do not go together"),
        (given_output, "an output that no operator makes"),
        (variable, "a tensor of a kind that no file of ours has"),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
def test_what_no_operator_can_take_is_told(part: PartFiles, change: Change, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        tflite.read(changed(part, change))
    assert "a.tflite" in caught.value.message
    assert caught.value.hint
