"""Give a traced graph its numbers: every product in the operator of the scheme, every other weight as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from exporters.formats.onnx.trace import LINEAR, MICROSOFT
from exporters.quantization import embedding_table, integers


class Lowering:
    """Replaces the placeholders of one graph. `state` is the module's own state: where a product is quantised, its
    weight there becomes what was stored, so that the module computes the reference of the written artifact."""

    def __init__(
        self,
        model: ir.Model,
        state: Mapping[str, Tensor],
        scheme: Callable[[str], str],
        importance: Mapping[str, Tensor],
        scales: Mapping[str, Tensor],
        *,
        half: bool = False,
    ) -> None:
        """`scheme`: of each product, by its weight's name; `scales`: of the weights that are rounded already; `half`:
        all else is stored in half precision, to be computed in it."""
        self.graph = model.graph
        self.model = model
        self.state = state
        self.importance = importance
        self.scales = scales
        self.scheme = scheme
        self.half = half
        self.quantized_activations: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self.stored: dict[str, tuple[ir.Value, ...]] = {}  # by the weight's name: one may serve several products

    def run(self, progress: Callable[[float], None]) -> None:
        placeholders = [node for node in self.graph if (node.domain, node.op_type) == LINEAR]
        for done, node in enumerate(placeholders, 1):
            x, weight, bias = (*node.inputs, None)[:3]
            assert x is not None and weight is not None and weight.name is not None
            out = STORAGE[self.scheme(weight.name)].write(self, node, x, weight, bias)
            self._replace(node, out)
            progress(done / len(placeholders))
        for name, value in list(self.graph.initializers.items()):
            if not value.uses():
                del self.graph.initializers[name]
            elif name in self.state:
                self._keep(value, self.state[name])
        self.model.opset_imports.pop(LINEAR[0], None)
        self.model.opset_imports[MICROSOFT] = 1

    def _keep(self, value: ir.Value, tensor: Tensor) -> None:
        """What is no product's weight, as it is stored."""
        if self.half and tensor.dtype == torch.float32:
            stored = tensor.half()
            tensor.copy_(stored)
            tensor, value.dtype = stored, ir.DataType.FLOAT16
        value.const_value = ir.tensor(tensor.contiguous().numpy(), name=value.name)

    # Each takes the placeholder, its input, its weight [N, K] and its bias, and gives the value that replaces it.

    def fp32(self, node: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        def store(name: str, tensor: Tensor) -> tuple[ir.Value]:
            # MatMul wants [K, N]. Lazy, so that a second fp32 copy of the model never exists.
            return (self._lazy(f"{name}.T", lambda: tensor.T.contiguous().numpy(), tensor.T.shape),)

        return self._add_bias(node, self._node(node, "MatMul", [x, *self._once(weight, store)]), bias)

    def fp16(self, node: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Stored in half, computed in float: ONNX Runtime's processors have no half kernels, it folds the cast."""

        def store(name: str, tensor: Tensor) -> tuple[ir.Value]:
            half = tensor.half()
            tensor.copy_(half)
            return (self._initializer(f"{name}.T", half.T.contiguous().numpy()),)

        cast = self._node(node, "Cast", [*self._once(weight, store)], {"to": int(ir.DataType.FLOAT)})
        return self._add_bias(node, self._node(node, "MatMul", [x, cast]), bias)

    def w16a16(self, node: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Stored in half, and computed in it."""

        def store(name: str, tensor: Tensor) -> tuple[ir.Value]:
            half = tensor.half()
            tensor.copy_(half)
            return (self._initializer(f"{name}.T", half.T.contiguous().numpy()),)

        return self._add_bias(node, self._node(node, "MatMul", [x, *self._once(weight, store)]), bias)

    def int8(self, node: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """int8 weights with a scale for each output, activations to uint8 as they come."""

        def store(name: str, tensor: Tensor) -> tuple[ir.Value, ir.Value]:
            packed = integers.per_channel(tensor)
            tensor.copy_(packed.dequantized())
            values = self._initializer(f"{name}.int8", packed.values.T.contiguous().numpy())
            return values, self._initializer(f"{name}.scale", packed.scales.numpy())

        if x not in self.quantized_activations:
            self.quantized_activations[x] = self._nodes(node, "DynamicQuantizeLinear", [x], outputs=3)
        a, a_scale, a_zero = self.quantized_activations[x]
        b, b_scale = self._once(weight, store)
        return self._node(node, "MatMulIntegerToFloat", [a, b, a_scale, b_scale, a_zero, None, bias], domain=MICROSOFT)

    def bits(self, bits: int, node: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Integers in blocks along the input. Accuracy level 4 lets the kernel round activations to int8; of halves,
        level 2 lets none."""

        def store(name: str, tensor: Tensor) -> tuple[ir.Value, ir.Value]:
            packed = integers.blockwise(tensor, bits, self.importance.get(name), scales=self.scales.get(name))
            packed = packed.halved() if self.half else packed
            tensor.copy_(packed.dequantized())
            data = self._initializer(f"{name}.int{bits}", _stored_bits(packed))
            stored = packed.scales.half() if self.half else packed.scales
            return data, self._initializer(f"{name}.scale", stored.numpy())

        data, scales = self._once(weight, store)
        assert weight.name is not None
        rows, columns = self.state[weight.name].shape
        attrs = {"K": columns, "N": rows, "bits": bits, "block_size": integers.BLOCK}
        attrs["accuracy_level"] = 2 if self.half else 4
        if bias is None or self.half:  # not every version of CUDA's kernel takes a bias
            return self._add_bias(node, self._node(node, "MatMulNBits", [x, data, scales], attrs, MICROSOFT), bias)
        return self._node(node, "MatMulNBits", [x, data, scales, None, None, bias], attrs, MICROSOFT)

    def _once(self, weight: ir.Value, store: Callable[[str, Tensor], tuple[ir.Value, ...]]) -> tuple[ir.Value, ...]:
        """A weight's initialisers; rounded twice it would be another weight."""
        assert weight.name is not None
        if weight.name not in self.stored:
            self.stored[weight.name] = store(weight.name, self.state[weight.name])
        return self.stored[weight.name]

    def _add_bias(self, node: ir.Node, y: ir.Value, bias: ir.Value | None) -> ir.Value:
        return y if bias is None else self._node(node, "Add", [y, bias])

    def _node(
        self,
        before: ir.Node,
        op: str,
        inputs: list[ir.Value | None],
        attrs: Mapping[str, int] | None = None,
        domain: str = "",
    ) -> ir.Value:
        return self._nodes(before, op, inputs, attrs, domain)[0]

    def _nodes(
        self,
        before: ir.Node,
        op: str,
        inputs: list[ir.Value | None],
        attrs: Mapping[str, int] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> tuple[ir.Value, ...]:
        attributes = [ir.AttrInt64(key, value) for key, value in (attrs or {}).items()]
        node = ir.Node(domain, op, inputs, attributes, num_outputs=outputs)
        self.graph.insert_before(before, node)
        return tuple(node.outputs)

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self.graph.register_initializer(value)
        return value

    def _lazy(self, name: str, read: Callable[[], np.ndarray], shape: torch.Size) -> ir.Value:
        dtype = ir.DataType.FLOAT
        tensor = ir.LazyTensor(lambda: ir.tensor(read(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
        value = ir.Value(name=name, const_value=tensor)
        value.dtype, value.shape = dtype, ir.Shape(shape)
        self.graph.register_initializer(value)
        return value

    def _replace(self, node: ir.Node, out: ir.Value) -> None:
        old = node.outputs[0]
        out.name, out.shape, out.type = old.name, old.shape, old.type
        old.replace_all_uses_with(out, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)


def _stored_bits(packed: integers.Blockwise) -> np.ndarray:
    """MatMulNBits' layout: uint8 `[N, blocks, BLOCK * bits / 8]`, zero point in the middle, low nibble first."""
    if packed.bits == 8:
        return (packed.values.to(torch.int16) + 128).to(torch.uint8).numpy()
    nibbles = (packed.values + 8).to(torch.uint8)
    return (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)).numpy()


class Storage(NamedTuple):
    """How a scheme stores a decoder's or encoder's matmul weights, and the embedding table beside them."""

    write: Callable[[Lowering, ir.Node, ir.Value, ir.Value, ir.Value | None], ir.Value]
    table: embedding_table.Kind


STORAGE = {
    "fp32": Storage(Lowering.fp32, "fp32"),
    "fp16": Storage(Lowering.fp16, "fp16"),
    "w8a8": Storage(Lowering.int8, "int8"),
    "w8": Storage(lambda lowering, *given: lowering.bits(8, *given), "int8"),
    "w4": Storage(lambda lowering, *given: lowering.bits(4, *given), "int8"),
    "w16a16": Storage(Lowering.w16a16, "fp16"),
    "w4a16": Storage(lambda lowering, *given: lowering.bits(4, *given), "int8"),
}
