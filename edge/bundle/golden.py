"""Golden sample (`golden.safetensors`): reference inputs and outputs, so that any machine can prove the parts.

Each array exists as fp32 torch computed it; with `.stored`, as torch computed it on the weights that the parts hold.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.bundle import safetensors
from edge.errors import BundleError
from edge.types import Array

GOLDEN = "golden.safetensors"
TOKENS = 16  # greedy tokens after the prompt
OUTPUTS = {"image_embeds": (np.float32, 3), "logits": (np.float32, 1), "tokens": (np.int32, 1)}  # dtype, dimensions
STORED = {f"{name}.stored": kind for name, kind in OUTPUTS.items()}
ARRAYS = {"picture": (np.uint8, 3), "pixel_values": (np.float32, 4), **OUTPUTS, **STORED}
# What NumPy and zipfile raise on damaged bytes.
_DAMAGE = (
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Outputs:
    """What one set of weights computes. The decoder is always fed the fp32 `image_embeds`: each part on its own."""

    image_embeds: NDArray[np.float32]  # [1, N, D]
    logits: NDArray[np.float32]  # [vocab], of the prompt's last position
    tokens: NDArray[np.int32]  # [TOKENS], greedy, not stopped by an end token


@dataclass(frozen=True)
class Golden:
    picture: NDArray[np.uint8]  # [H, W, 3], RGB
    pixel_values: NDArray[np.float32]  # [1, 3, S, S]
    fp32: Outputs
    stored: Outputs

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {"picture": self.picture, "pixel_values": self.pixel_values}
        for suffix, outputs in (("", self.fp32), (".stored", self.stored)):
            for name in OUTPUTS:
                arrays[name + suffix] = getattr(outputs, name)
        safetensors.write(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Raises BundleError when the file is not a golden one."""
        arrays = _npz(path) if path.suffix == ".npz" else safetensors.read(path)
        for name, (dtype, dimensions) in ARRAYS.items():
            if name not in arrays:
                raise BundleError(f"{path.name} has no {name}", hint="copy or export the bundle again")
            if arrays[name].dtype != dtype or arrays[name].ndim != dimensions:
                raise BundleError(
                    f"{path.name} has {name} as {arrays[name].dtype} {list(arrays[name].shape)}",
                    hint="copy or export the bundle again",
                )
        fp32, stored = (Outputs(*(arrays[name + suffix] for name in OUTPUTS)) for suffix in ("", ".stored"))
        return cls(arrays["picture"], arrays["pixel_values"], fp32, stored)


def _npz(path: Path) -> dict[str, Array]:
    """As bundles of schema 1 have it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ARRAYS if name in file.files}
    except _DAMAGE as error:
        raise BundleError(f"{path.name} cannot be read: {error!r}", hint="copy or export the bundle again") from error
