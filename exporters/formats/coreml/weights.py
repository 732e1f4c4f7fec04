"""A component's numbers in Core ML's weight file, each written once whatever function uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from coremltools import proto
from coremltools.converters.mil.backend.mil import helper
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var, types
from coremltools.converters.mil.mil.block import curr_block
from coremltools.libmilstoragepython import _BlobStorageWriter as BlobWriter
from torch import Tensor

from edge.errors import EdgeError
from edge.types import Array
from exporters.formats.coreml.palette import palettized
from exporters.quantization import embedding_table, integers

FILE = "weight.bin"
_INLINE = 10  # elements: coremltools itself writes smaller ones into the program
_WRITERS = {
    "fp16": "write_fp16_data",
    "fp32": "write_float_data",
    "int8": "write_int8_data",
    "int4": "write_int4_data",
    "uint4": "write_uint4_data",
}
_SUB_BYTE = {"int4": types.np_int4_dtype, "uint4": types.np_uint4_dtype}


@dataclass(frozen=True)
class _Stored:
    """What stands in the file: a constant of the program has its type and shape, and no numbers of its own."""

    key: str
    like: Array


@dataclass(frozen=True)
class _Compressed:
    """A product's weight as stored: the operation that makes numbers of it, and that operation's constants."""

    expand: Callable[..., Var]
    constants: Mapping[str, _Stored]


class Weights:
    """`state` is the module's own: each tensor there becomes what was stored, so that the module computes the reference
    of the written artifact."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        scheme: Callable[[str], str],
        importance: Mapping[str, Tensor],
        scales: Mapping[str, Tensor],
        folder: Path,
        convolutions: bool = False,
    ) -> None:
        """`scheme`: of each product, by its weight's name; `scales`: of the weights that are rounded already."""
        self._state = state
        self._importance = importance
        self._given = scales
        self._behind = (1, 1) if convolutions else ()  # the axes of a product's weight after [N, K]
        self._scheme = scheme
        self._writer = BlobWriter(str(folder / FILE))
        self._compressed: dict[str, _Compressed] = {}
        self._halved: dict[str, Tensor] = {}
        self._vars: dict[tuple[int, str], Var] = {}
        self.stored: dict[str, _Stored] = {}
        self.places: dict[str, proto.MIL_pb2.Value] = {}  # by key, as coremltools' exporter looks them up
        self.kinds: dict[str, str] = {}  # product -> how it is stored

    def plain(self, name: str, wide: bool, shape: tuple[int, ...] | None = None) -> Var:
        """A tensor of the module in half precision; where it is needed wide, the same numbers as fp32."""
        if name not in self._halved:
            half = _finite(name, self._state[name].half())
            self._state[name].copy_(half)
            self._halved[name] = half
        array = self._halved[name].numpy()
        return self.array(name, array.reshape(shape or array.shape), wide)

    def array(self, name: str, array: Array, wide: bool) -> Var:
        array = array.astype(np.float32 if wide else np.float16)
        if array.size < _INLINE:
            return mb.const(val=array)
        kind = "fp32" if wide else "fp16"
        return self._const(self._store(f"{name}.{kind}", array, kind))

    def product(self, name: str, wide: bool) -> Var:
        """A weight `[N, K]` of a product, in the scheme; `[N, K, 1, 1]` where products are convolutions. One of so few
        rows that their scales would not lie in the weight file stays in half precision."""
        shape, compress = self._state[name].shape, STORAGE[self._scheme(name)].compress
        if compress is None or len(shape) != 2 or shape[0] < _INLINE:
            self.kinds[name] = "fp16"
            var = self.plain(name, wide=False, shape=(*shape, *self._behind))
            return mb.cast(x=var, dtype="fp32") if wide else var
        if name not in self._compressed:
            self._compressed[name] = compress(self, name, wide)
        found = self._compressed[name]
        return found.expand(**{key: self._const(stored) for key, stored in found.constants.items()})

    def close(self) -> None:
        """The file is whole only when its writer is gone."""
        del self._writer

    def w8(self, name: str, wide: bool) -> _Compressed:
        """int8 with a scale for each row."""
        self.kinds[name] = "w8"
        packed = integers.per_channel(self._state[name])
        scales = _finite(name, packed.scales[:, None].half())
        self._keep(name, packed.values.float() * scales.float(), wide)
        return self._scaled(name, packed.values, "int8", scales, wide)

    def w4(self, name: str, wide: bool) -> _Compressed:
        """int4 with a scale for each block of a row; a width that blocks do not divide stays at 8 bits."""
        columns = self._state[name].shape[1]
        if columns % integers.BLOCK:
            return self.w8(name, wide)
        self.kinds[name] = "w4"
        packed = integers.blockwise(self._state[name], 4, self._importance.get(name), scales=self._given.get(name))
        scales = _finite(name, packed.scales.half())
        dense = packed.values.float() * scales.float()[..., None]
        self._keep(name, dense.flatten(1), wide)
        return self._scaled(name, packed.values.flatten(1), "int4", scales, wide)

    def pal4(self, name: str, wide: bool) -> _Compressed:
        """A table of 16 numbers for each group of rows, and 4 bits for each weight that point into it."""
        self.kinds[name] = "pal4"
        found = palettized(self._state[name], self._importance.get(name))
        _finite(name, found.tables)
        self._state[name].copy_(found.dense())
        groups, entries = found.tables.shape
        tables = found.tables.numpy().reshape(groups, 1, *self._behind, entries, 1)
        if wide:
            tables = tables.astype(np.float32)
        constants = {
            "indices": self._store(f"{name}.indices", self._shaped(found.indices), "uint4"),
            "lut": self._store(f"{name}.lut", tables, "fp32" if wide else "fp16"),
        }
        return _Compressed(mb.constexpr_lut_to_dense, constants)

    def _scaled(self, name: str, values: Tensor, kind: str, scales: Tensor, wide: bool) -> _Compressed:
        width = "fp32" if wide else "fp16"
        numbers = self._shaped(scales.float() if wide else scales)
        constants = {
            "data": self._store(f"{name}.{kind}", self._shaped(values), kind),
            "scale": self._store(f"{name}.scale", numbers, width),
        }
        return _Compressed(mb.constexpr_blockwise_shift_scale, constants)

    def _shaped(self, values: Tensor) -> Array:
        return values.numpy().reshape(*values.shape, *self._behind)

    def _keep(self, name: str, dense: Tensor, wide: bool) -> None:
        # The operation gives numbers of its scales' type.
        self._state[name].copy_(dense if wide else _finite(name, dense.half()))

    def _store(self, key: str, array: Array, kind: str) -> _Stored:
        if key not in self.stored:
            flat = np.ascontiguousarray(array).reshape(-1)
            bits = flat.view(np.uint16) if kind == "fp16" else flat
            offset = getattr(self._writer, _WRITERS[kind])(bits)
            dtype = _SUB_BYTE.get(kind, array.dtype)
            like: Array = np.ndarray(array.shape, dtype, np.zeros(1, np.int64).data, strides=(0,) * array.ndim)
            primitive = helper.types_to_proto_primitive(types.numpy_type_to_builtin_type(dtype))
            self.places[key] = helper.create_file_value_tensor(
                f"@model_path/weights/{FILE}", offset, array.shape, primitive
            )
            self.stored[key] = _Stored(key, like)
        return self.stored[key]

    def _const(self, stored: _Stored) -> Var:
        if stored.like.size < _INLINE:
            raise AssertionError(f"{stored.key} is too small for the weight file")
        place = (id(curr_block()), stored.key)  # a name is given once in a function
        if place not in self._vars:
            self._vars[place] = mb.const(val=stored.like, name=identifier(stored.key))
            self._vars[place].op.weight_id = stored.key
        return self._vars[place]


class Storage(NamedTuple):
    """How a scheme stores the weights of products, and the embedding table beside them."""

    compress: Callable[[Weights, str, bool], _Compressed] | None
    table: embedding_table.Kind


STORAGE = {
    "fp16": Storage(None, "fp16"),
    "w8": Storage(Weights.w8, "int8"),
    "w4": Storage(Weights.w4, "int8"),
    "pal4": Storage(Weights.pal4, "int8"),
}


def _finite(name: str, half: Tensor) -> Tensor:
    # The least and the largest tell of all, without a copy; a NaN comes through.
    if half.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(half))).all()):
        raise EdgeError(
            f"{name} holds a number that half precision does not", hint="Core ML stores nothing wider: another --format"
        )
    return half


def identifier(key: str) -> str:
    """As Core ML wants names: letters, digits and underscores."""
    return "".join(c if c.isalnum() else "_" for c in key)
