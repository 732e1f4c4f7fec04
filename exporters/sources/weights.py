"""A checkpoint's weights, read lazily: one file or many, safetensors or torch's `.bin`. Nothing is written to them."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edge.bundle.manifest import sha256
from edge.errors import CheckpointError
from exporters.sources import adapters

# In order of preference: safetensors cannot carry code, and one file needs no index.
LAYOUTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
AGAIN = "download the checkpoint again"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """A tensor where it lies; `read` fetches it in its stored dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


class Weights(Mapping[str, Tensor]):
    """Names to tensors in their stored dtype. What is not asked for is not read; shapes and dtypes cost nothing."""

    def __init__(self, stored: Mapping[str, Stored], files: tuple[Path, ...]) -> None:
        self._stored = dict(stored)
        self.files = files

    @classmethod
    def open(cls, folder: Path) -> Weights:
        """Raises CheckpointError where the folder holds no weights, an adapter, or damaged or unsafe weights."""
        adapters.refuse(folder)
        for layout in LAYOUTS:
            if (path := folder / layout).is_file():
                return cls._sharded(path) if path.suffix == ".json" else cls.file(path)
        raise adapters.nothing(folder, LAYOUTS)

    @classmethod
    def file(cls, path: Path) -> Weights:
        """Of one file. Raises CheckpointError on one that is damaged or unsafe."""
        return cls(_read(path), (path,))

    @classmethod
    def _sharded(cls, index: Path) -> Weights:
        shard_of = _index(index)
        paths = tuple(index.with_name(shard) for shard in sorted(set(shard_of.values())))
        if missing := [path.name for path in paths if not path.is_file()]:
            raise CheckpointError(f"{str(index.parent)!r} lacks {', '.join(missing)}", hint=AGAIN)
        stored: dict[str, Stored] = {}
        for path in paths:
            tensors = _read(path)
            if lost := [name for name, shard in shard_of.items() if shard == path.name and name not in tensors]:
                raise CheckpointError(f"{path.name} lacks what {index.name} names: {listed(lost)}", hint=AGAIN)
            stored |= {name: tensor for name, tensor in tensors.items() if shard_of.get(name, path.name) == path.name}
        return cls(stored, (index, *paths))

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # Mapping's own would read the tensor

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored)

    def stored(self, name: str) -> Stored:
        return self._stored[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._stored[name].dtype

    def within(self, prefix: str) -> Weights:
        """Only those whose name begins with `prefix`."""
        return Weights({name: stored for name, stored in self._stored.items() if name.startswith(prefix)}, self.files)

    def merged(self, other: Weights) -> Weights:
        """These and the other's; a name that both hold is the other's."""
        return Weights(self._stored | other._stored, self.files + other.files)

    def sha256(self) -> str:
        return content_hash(self.files)


def content_hash(files: tuple[Path, ...]) -> str:
    """SHA-256 over the files' names and bytes, in the given order; where they lie does not matter."""
    total = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=4) as pool:
        for path, digest in zip(files, pool.map(sha256, files), strict=True):
            total.update(f"{path.name}\0{digest}\n".encode())
    return total.hexdigest()


def _index(path: Path) -> dict[str, str]:
    """The shard of each tensor, as the index file says."""
    try:
        found = json.loads(path.read_bytes())["weight_map"]
        shard_of = {str(name): str(shard) for name, shard in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}", hint=AGAIN) from error
    for shard in shard_of.values():
        # An index is untrusted: its shards lie beside it.
        if shard in ("", ".", "..") or re.search(r"[/\\:]", shard):
            raise CheckpointError(f"{path.name} names a file outside its folder: {shard!r}", hint="do not use it")
    if not shard_of:
        raise CheckpointError(f"{path} names no tensor", hint=AGAIN)
    return shard_of


def _read(path: Path) -> dict[str, Stored]:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is only a pointer of git-lfs", hint="run `git lfs pull` in its folder")
    return _safetensors(path) if path.suffix == ".safetensors" else _bin(path, zipped=start.startswith(b"PK\x03\x04"))


def _safetensors(path: Path) -> dict[str, Stored]:
    stored = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                view = file.get_slice(name)
                if (kind := view.get_dtype()) not in DTYPES:
                    raise CheckpointError(f"{path.name}: {name!r} is stored as {kind}", hint=_wanted())
                stored[name] = Stored(tuple(view.get_shape()), DTYPES[kind], partial(_tensor, path, name))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}", hint=AGAIN) from error
    return stored


def _tensor(path: Path, name: str) -> Tensor:
    # The file is mapped anew for every tensor: a mapping that stays open keeps every page that was read in memory.
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _bin(path: Path, *, zipped: bool) -> dict[str, Stored]:
    if zipped:
        _require_stored(path)
    try:
        # Files older than torch 1.6 are no zip archives and cannot be mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # the unpickler of damaged bytes raises anything
        if code := re.search(r"GLOBAL (\w[\w.]*)", str(error)):
            raise CheckpointError(
                f"{path} would run code: it asks for {code[1]}",
                hint="do not use it, or have its author save it as safetensors",
            ) from error
        reason = "no torch archive" if isinstance(error, UnpicklingError) else str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged: {reason or type(error).__name__}", hint=AGAIN) from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(f"{path} is not a mapping of names to tensors", hint="save model.state_dict()")
    for name, tensor in found.items():
        if tensor.dtype not in DTYPES.values():
            raise CheckpointError(f"{path.name}: {name!r} is stored as {tensor.dtype}", hint=_wanted())
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or _larger(tensor):
            raise CheckpointError(
                f"{path.name}: {name!r} is no plain tensor whose numbers are all in the file",
                hint="save the checkpoint as safetensors",
            )
    return {
        str(name): Stored(tuple(tensor.shape), tensor.dtype, partial(torch.Tensor.detach, tensor))
        for name, tensor in found.items()
    }


def _larger(tensor: Tensor) -> bool:
    """Whether it says more numbers than its storage holds: one may stand for a row of any length."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _require_stored(path: Path) -> None:
    """torch compresses nothing: what is, may be any size once it is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", hint=AGAIN) from error
    if packed:
        raise CheckpointError(
            f"{path.name}: {packed[0].filename!r} is compressed, as torch never writes it", hint="do not use it"
        )


def _wanted() -> str:
    return "save the checkpoint in float32, float16 or bfloat16"


def listed(names: list[str], between: str = ", ") -> str:
    """The first of them."""
    return between.join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
