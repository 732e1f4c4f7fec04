"""Makes a lowered ONNX graph compute in half precision: weights, constants and the KV cache; its ends stay float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

SCHEMES = ("w16a16", "w4a16")  # those whose activations are halves, too
_CACHE = ("past_key_values.", "present.")  # at these ends nothing is cast: they lie on the card from step to step


def compute_in_half(model: ir.Model) -> None:
    """Initialisers are halves already, where the lowering stored them so."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            assert value.const_value is not None
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
            value.dtype = ir.DataType.FLOAT16
    for node in list(graph):
        _halve(node)
    for given in list(graph.inputs):
        if given.dtype == ir.DataType.FLOAT:
            _halve_input(graph, given)
    for index, made in enumerate(list(graph.outputs)):
        assert made.name is not None
        if made.dtype == ir.DataType.FLOAT16 and not made.name.startswith(_CACHE):
            graph.outputs[index] = _widened(graph, made)


def _halve(node: ir.Node) -> None:
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.FLOAT16
    for name, attribute in list(node.attributes.items()):
        if node.op_type == "Cast" and name == "to" and attribute.as_int() == int(ir.DataType.FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT16))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
            halves = attribute.as_tensor().numpy().astype(np.float16)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(halves))
        elif node.op_type == "Constant" and name == "value_float":
            del node.attributes[name]
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array(attribute.as_float(), np.float16)))


def _halve_input(graph: ir.Graph, given: ir.Value) -> None:
    assert given.name is not None
    if given.name.startswith(_CACHE):
        given.dtype = ir.DataType.FLOAT16
        return
    users = [(use.node, use.idx) for use in given.uses()]
    cast = ir.Node("", "Cast", [given], [ir.AttrInt64("to", int(ir.DataType.FLOAT16))])
    _describe(cast.outputs[0], f"{given.name}.half", ir.DataType.FLOAT16, given.shape)
    for node, index in users:
        node.replace_input_with(index, cast.outputs[0])
    graph.insert_before(graph[0], cast)


def _widened(graph: ir.Graph, made: ir.Value) -> ir.Value:
    name = made.name
    cast = ir.Node("", "Cast", [made], [ir.AttrInt64("to", int(ir.DataType.FLOAT))])
    made.name = f"{name}.half"
    _describe(cast.outputs[0], str(name), ir.DataType.FLOAT, made.shape)
    graph.append(cast)
    return cast.outputs[0]


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.dtype, value.shape = name, dtype, shape
