"""The weights of a component, stored once in a scheme and used by every subgraph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor

from edge.errors import EdgeError
from edge.types import Array
from exporters.quantization import embedding_table, integers
from exporters.tflite_model import Graph

# Of FULLY_CONNECTED, as TensorFlow Lite's op_version.cc counts: with kept dimensions; with int8 weights of one scale;
# with several scales. A library that knows none of the last refuses the file: it would take the first scale for all.
_FLOAT, _ONE_SCALE, _SCALES = 5, 9, 12


class Storage(NamedTuple):
    """How a scheme stores the weights of products, and the embedding table beside them."""

    bits: int  # of a weight: 32 or 16, a float; 8, integers with a scale for each row; 4, with one for each block of it
    version: int  # of FULLY_CONNECTED
    table: embedding_table.Kind


STORAGE = {
    "fp32": Storage(32, _FLOAT, "fp32"),
    "fp16": Storage(16, _FLOAT, "fp32"),
    "w8a8": Storage(8, _SCALES, "int8_rows"),
    "w8": Storage(8, _SCALES, "int8_rows"),
    "w4": Storage(4, _SCALES, "int8_rows"),
    "legacy": Storage(8, _ONE_SCALE, "int8_rows"),
}


class Product(NamedTuple):
    """The right side of a product."""

    tensor: int
    dynamic: bool  # its left side is rounded to int8 as it comes
    version: int  # of the operator


class Weights:
    """`state` is the module's own: where a product is quantised, its weight there becomes what was stored, so that the
    module computes the reference of the written file."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        scheme: Callable[[str], str],
        importance: Mapping[str, Tensor],
        scales: Mapping[str, Tensor],
    ) -> None:
        """`scheme`: of each product, by its weight's name; `scales`: of the weights that are rounded already."""
        self._state = state
        self._importance = importance
        self._given = scales
        self._scheme = scheme
        self._bytes: dict[str, Array] = {}
        self._scales: dict[str, Array] = {}

    def plain(self, graph: Graph, name: str) -> int:
        return graph.stored(name, self._state[name].numpy())

    def zeros(self, graph: Graph, count: int) -> int:
        return graph.stored(f"zeros:{count}", np.zeros(count, np.float32))

    def constant(self, graph: Graph, name: str, array: Array) -> Product:
        """A right side `[N, K]` that is no weight of the module: float32 in every scheme."""
        return Product(graph.stored(name, array), False, _FLOAT)

    def table(self, graph: Graph, name: str) -> Product:
        """A right side `[N, K]` of the module's that is no linear layer's weight: float32 in every scheme."""
        return Product(self.plain(graph, name), False, _FLOAT)

    def filters(self, graph: Graph, name: str, depthwise: bool) -> int:
        """torch has `[out, in, H, W]`; TFLite `[out, H, W, in]`, and `[1, H, W, out]` where each channel is alone."""
        axes = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
        return graph.stored(name, np.ascontiguousarray(self._state[name].permute(axes).numpy()))

    def product(self, graph: Graph, name: str) -> Product:
        """The weight `[N, K]` of that name."""
        storage = STORAGE[self._scheme(name)]
        if storage.bits == 32:
            return Product(self.plain(graph, name), False, storage.version)
        if storage.bits == 16:
            return Product(graph.quantized(name, lambda: self._half(graph, name)), False, storage.version)
        if name not in self._bytes:
            self._quantize(name, storage)
        index = graph.quantized(name, lambda: self._tensor(graph, name, storage.bits))
        return Product(index, True, storage.version)

    def _half(self, graph: Graph, name: str) -> int:
        """Stored in half, computed in float: XNNPACK widens it once, when it is opened."""
        weight = self._state[name]
        half = weight.half()
        weight.copy_(half)
        stored = graph.stored(f"{name}.half", half.numpy())
        return graph.op("DEQUANTIZE", [stored], [weight.shape], table="DequantizeOptions")[0]

    def _quantize(self, name: str, storage: Storage) -> None:
        weight = self._state[name]
        if storage.bits == 4:
            if weight.shape[1] % integers.BLOCK:
                raise EdgeError(
                    f"{name} is {weight.shape[1]} wide, and 4-bit blocks of a TFLite file are {integers.BLOCK}",
                    hint="--scheme decoder=w8",
                )
            guide, given = self._importance.get(name), self._given.get(name)
            packed = integers.blockwise(weight, 4, guide, positive=True, scales=given)
            self._bytes[name] = _nibbles(packed.values.flatten(1))
            self._scales[name] = packed.scales.half().numpy()
            weight.copy_(packed.dequantized())
            return
        rows = integers.per_tensor(weight) if storage.version == _ONE_SCALE else integers.per_channel(weight)
        self._bytes[name], self._scales[name] = rows.values.numpy(), rows.scales.numpy()
        weight.copy_(rows.dequantized())

    def _tensor(self, graph: Graph, name: str, bits: int) -> int:
        data, shape = self._bytes[name], self._state[name].shape
        buffer = graph.model.buffer(name, data.nbytes, lambda: data)
        index = graph.tensor(shape, name=name, kind=f"INT{bits}", buffer=buffer)
        graph.tensors[index].quantization = self._quantization(graph, name, bits)
        return index

    def _quantization(self, graph: Graph, name: str, bits: int) -> Any:
        scales = self._scales[name]
        found = schema.QuantizationParametersT(quantizedDimension=0)
        if bits == 4:
            found.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            found.details = schema.BlockwiseQuantizationT(
                scales=graph.stored(f"{name}.scales", scales), zeroPoints=-1, blockSize=integers.BLOCK
            )
        else:
            found.scale, found.zeroPoint = scales, np.zeros(len(scales), np.int64)
        return found


def _nibbles(values: Tensor) -> Array:
    """int8 `[N, K]` of -8..7 -> two in a byte, the first one low."""
    nibbles = values.view(torch.uint8) & 15
    packed: Array = (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).numpy()
    return packed
