"""Golden sample (`golden.safetensors`): reference inputs and outputs, so that any machine can prove the parts.

Each array exists as fp32 torch computed it; with `.stored`, as torch computed it on the weights that the parts hold;
and with `.rounded`, if kernels round activations to integers, as torch computed it on those weights and so rounded. Of
an image that is divided, each exists once more as `views.`, of all its views together.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.bundle import safetensors
from edge.errors import BundleError
from edge.spec import VLMSpec
from edge.types import Array

GOLDEN = "golden.safetensors"
TOKENS = 16  # greedy tokens after the prompt
OUTPUTS = {"image_embeds": (np.float32, 3), "logits": (np.float32, 1), "tokens": (np.int32, 1)}  # dtype, dimensions
STORED = {f"{name}.stored": kind for name, kind in OUTPUTS.items()}
ROUNDED = {f"{name}.rounded": kind for name, kind in OUTPUTS.items()}  # all of them or none
VIEWS = "views."  # before an output's name: of the image in all its views
ARRAYS = {"picture": (np.uint8, 3), "pixel_values": (np.float32, 4), **OUTPUTS, **STORED}
_MOST = 1 << 27  # bytes of an array: a picture is the largest
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
class References:
    """What was computed of one question about the picture."""

    fp32: Outputs
    stored: Outputs
    rounded: Outputs | None = None  # None where no kernel rounds activations


@dataclass(frozen=True)
class Golden:
    picture: NDArray[np.uint8]  # [H, W, 3], RGB
    pixel_values: NDArray[np.float32]  # [1, 3, S, S], or [1, 1, N, F] patches: as one view, which the next three are of
    fp32: Outputs
    stored: Outputs
    rounded: Outputs | None = None
    divided: References | None = None  # in all its views, `image_embeds` [1, all rows, D]; None: it has one

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {"picture": self.picture, "pixel_values": self.pixel_values}
        for before, of in (("", self), (VIEWS, self.divided)):
            if of is None:
                continue
            for suffix, outputs in (("", of.fp32), (".stored", of.stored), (".rounded", of.rounded)):
                if outputs is not None:
                    arrays |= {f"{before}{name}{suffix}": getattr(outputs, name) for name in OUTPUTS}
        safetensors.write(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Raises BundleError when the file is not a golden one."""
        arrays = _npz(path) if path.suffix == ".npz" else safetensors.read(path)
        rounds = any(name in arrays for name in ROUNDED)
        expected = {**ARRAYS, **(ROUNDED if rounds else {})}
        if divided := VIEWS + next(iter(OUTPUTS)) in arrays:
            expected |= {VIEWS + name: kind for name, kind in expected.items() if name.partition(".")[0] in OUTPUTS}
        for name, (dtype, dimensions) in expected.items():
            if name not in arrays:
                raise BundleError(f"{path.name} has no {name}", hint="copy or export the bundle again")
            if arrays[name].dtype != dtype or arrays[name].ndim != dimensions:
                raise BundleError(
                    f"{path.name} has {name} as {arrays[name].dtype} {list(arrays[name].shape)}",
                    hint="copy or export the bundle again",
                )
        suffixes = ("", ".stored", ".rounded") if rounds else ("", ".stored")

        def outputs(before: str) -> list[Outputs]:
            return [Outputs(*(arrays[before + name + suffix] for name in OUTPUTS)) for suffix in suffixes]

        whole = References(*outputs(""))
        own = (arrays["picture"], arrays["pixel_values"], whole.fp32, whole.stored, whole.rounded)
        return cls(*own, References(*outputs(VIEWS)) if divided else None)


def _npy(file: zipfile.ZipFile, member: str) -> Array:
    """An array of the archive: its head is read before any of it is unpacked."""
    with file.open(member) as packed:
        version = np.lib.format.read_magic(packed)
        heads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, columns, dtype = heads[version](packed)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or columns or size > _MOST:
            raise ValueError(f"{member} is {dtype} {list(shape)}")
        return np.frombuffer(packed.read(size), dtype).reshape(shape).copy()


def golden_bytes(spec: VLMSpec, picture: int, divided: int) -> int:
    """How large the sample will be, all three references in it; `picture`: its bytes; `divided`: embeddings of all its
    views, 0 where it is one."""
    outputs = spec.prompt.image_tokens * spec.decoder.hidden + spec.decoder.vocab + TOKENS
    outputs += (divided * spec.decoder.hidden + spec.decoder.vocab + TOKENS) * bool(divided)
    return picture + 4 * (math.prod(spec.image.view_shape) + 3 * outputs)


def _npz(path: Path) -> dict[str, Array]:
    """As bundles of schema 1 have it."""
    try:
        with zipfile.ZipFile(path) as file:
            there = {name: f"{name}.npy" for name in ARRAYS if f"{name}.npy" in file.namelist()}
            return {name: _npy(file, member) for name, member in there.items()}
    except _DAMAGE as error:
        raise BundleError(f"{path.name} cannot be read: {error!r}", hint="copy or export the bundle again") from error
