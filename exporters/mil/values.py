"""What a program writes down of values: types and constants, from protocol buffers to torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from coremltools.proto.MIL_pb2 import DataType
from torch import Tensor

from edge.errors import EngineError
from exporters.mil.blob import Blob

Value = Tensor | str | list["Value"]
# Data type -> (NumPy, bits, torch)
_TYPES: dict[int, tuple[str, int, torch.dtype]] = {
    DataType.FLOAT16: ("<f2", 16, torch.float16),
    DataType.FLOAT32: ("<f4", 32, torch.float32),
    DataType.BOOL: ("?", 8, torch.bool),
    DataType.INT8: ("i1", 8, torch.int8),
    DataType.INT16: ("<i2", 16, torch.int16),
    DataType.INT32: ("<i4", 32, torch.int32),
    DataType.UINT8: ("u1", 8, torch.uint8),
    DataType.UINT16: ("<u2", 16, torch.int32),
    DataType.INT4: ("i1", 4, torch.int8),
    DataType.UINT4: ("u1", 4, torch.uint8),
    DataType.UINT1: ("u1", 1, torch.uint8),
    DataType.UINT2: ("u1", 2, torch.uint8),
    DataType.UINT3: ("u1", 3, torch.uint8),
    DataType.UINT6: ("u1", 6, torch.uint8),
}
NAMES = {"fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}


@dataclass(frozen=True)
class Type:
    dtype: torch.dtype
    shape: tuple[int | None, ...]  # None: not known before the program runs

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            want in (None, have) for want, have in zip(self.shape, shape, strict=True)
        )


def tensor_type(declared: Any) -> Type:
    """From proto.MIL_pb2.TensorType."""
    dtype = _known(declared.dataType)[2]
    return Type(
        dtype, tuple(d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in declared.dimensions)
    )


def constant(value: Any, blob: Blob | None) -> Value:
    """From proto.MIL_pb2.Value. Raises EngineError on what is not known, BundleError where the weight file is wrong."""
    declared = value.type.tensorType
    if value.WhichOneof("value") == "blobFileValue":
        numpy_type, bits, dtype = _known(declared.dataType)
        if blob is None:
            raise EngineError("the program has weights, and the package lists no weight file")
        array = blob.array(value.blobFileValue.offset, numpy_type, bits, _shape(declared))
        return torch.from_numpy(array).to(dtype)
    if value.immediateValue.WhichOneof("value") != "tensor":
        raise EngineError(f"no constant of {value.immediateValue.WhichOneof('value')} is known")
    tensor = value.immediateValue.tensor
    if declared.dataType == DataType.STRING:
        return str(tensor.strings.values[0])
    numpy_type, bits, dtype = _known(declared.dataType)
    kind = tensor.WhichOneof("value")
    if kind == "bytes" and bits % 8:
        raise EngineError("constants of less than a byte are known in the weight file only")
    listed = getattr(tensor, kind).values
    array = np.frombuffer(listed, numpy_type) if kind == "bytes" else np.array(listed, numpy_type)
    try:
        return torch.from_numpy(array.reshape(_shape(declared)).copy()).to(dtype)
    except ValueError as error:
        raise EngineError(f"a constant does not have the shape that it declares: {error}") from error


def place(value: Any) -> int | None:
    """Where in the weight file, if it lies there: two constants of the same place are the same."""
    return value.blobFileValue.offset if value.WhichOneof("value") == "blobFileValue" else None


def _shape(declared: Any) -> tuple[int, ...]:
    return tuple(int(d.constant.size) for d in declared.dimensions)


def _known(data_type: int) -> tuple[str, int, torch.dtype]:
    if data_type not in _TYPES:
        raise EngineError(f"no numbers of the type {DataType.Name(data_type)} are known")
    return _TYPES[data_type]
