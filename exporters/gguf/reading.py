"""A GGUF file as something that weights are read from: its settings, and its tensors one by one."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from edge.errors import BundleError, CheckpointError
from edge.formats import gguf as head
from edge.formats.gguf import GGUF, GGUFArray, GGUFTensor
from exporters.gguf.entries import halved
from exporters.sources.weights import Stored

AGAIN = "download the file again"
_PLAIN = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class Source:
    head: GGUF

    @classmethod
    def open(cls, path: Path) -> Source:
        """Raises CheckpointError on a file that is missing, no GGUF, cut, or counts what cannot be."""
        if not path.is_file():
            raise CheckpointError(f"no such file: {str(path)!r}", hint="is it spelled right?")
        found = _head(path)
        if found.settings.get("split.count", 1) not in (0, 1):
            raise CheckpointError(
                f"{path.name} is one of several files", hint="llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
            )
        return cls(found)

    @property
    def path(self) -> Path:
        return self.head.path

    def get(self, key: str, default: Any = None) -> Any:
        """A setting; a list as a list, and a float as the shortest decimal that is stored so."""
        value = self.head.settings.get(key, default)
        if isinstance(value, GGUFArray):
            return self._lists[key]
        return decimal(value) if isinstance(value, float) else value

    @cached_property
    def _lists(self) -> dict[str, list[Any]]:
        wanted = [key for key, value in self.head.settings.items() if isinstance(value, GGUFArray)]
        found = _head(self.path, wanted).settings
        return {key: list(found[key].values) for key in wanted}

    def shape(self, name: str) -> tuple[int, ...]:
        """As torch counts, the innermost axis last; () for what there is not."""
        return self.head.tensors[name].shape[::-1] if name in self.head.tensors else ()

    def stored(self, name: str, shape: tuple[int, ...] | None = None, heads: int = 0, rolled: bool = False) -> Stored:
        """A tensor where it lies, in the `shape` wanted if it is that but for axes of length 1. What is stored in
        blocks is read as float32; `heads` above 0: its rows are those of so many rotary heads; `rolled`: its first
        row is stored last."""
        tensor, own = self.head.tensors[name], self.shape(name)
        wanted = shape if shape is not None and _plain(shape) == _plain(own) else own
        return Stored(
            wanted,
            _PLAIN.get(tensor.kind, torch.float32),
            partial(_read, self.path, name, tensor, wanted, heads, rolled),
        )


def _head(path: Path, lists: Collection[str] = ()) -> GGUF:
    try:
        return head.read(path, lists)
    except BundleError as error:
        raise CheckpointError(error.message, hint=AGAIN) from error


def decimal(value: float) -> float:
    """The shortest decimal that float32 stores as this value: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _read(path: Path, name: str, tensor: GGUFTensor, shape: tuple[int, ...], heads: int, rolled: bool) -> Tensor:
    try:
        data = np.fromfile(path, np.uint8, tensor.bytes, offset=tensor.offset)
        if tensor.kind in _PLAIN:
            found = torch.from_numpy(data).view(_PLAIN[tensor.kind])
        else:
            rows = data.reshape(math.prod(tensor.shape[1:]), -1)
            with np.errstate(all="ignore"):  # of a scale that is not finite: exporters.finite names the tensor
                found = torch.from_numpy(gguf.dequantize(rows, Kind[tensor.kind]))
        return halved(found.reshape(shape), heads).roll(int(rolled), 0)
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{path.name}: {name} ({tensor.kind}) cannot be read: {error}", hint=AGAIN) from error
