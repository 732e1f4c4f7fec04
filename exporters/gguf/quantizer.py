"""llama.cpp's own quantiser, for the block layouts that are not packed here."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from edge.errors import EdgeError
from exporters.gguf.entries import Entry

_SILENCE = 0.01  # of the mean: no column is without any weight, for another picture may light it


def library() -> Any:
    """llama-cpp-python. Raises EdgeError where it is missing."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # its native library may lack, or not load
        raise EdgeError(
            f"llama.cpp's own quantiser cannot be had: {error}",
            hint="pip install 'edge-vlm[llamacpp]', or --scheme q4_0 (q8_0, f16, bf16), which needs none",
        ) from error
    return llama_cpp


def quantize(
    source: Path,
    target: Path,
    file_type: gguf.LlamaFileType,
    entries: Sequence[Entry],
    other: Mapping[str, Kind],
) -> None:
    """Read `source`, whose weights are wide, and write `target`; the entries' importance guides the rounding. Tensors
    named in `other` are stored as that, whatever the file's type would have them; where that gives some layers more
    bits, it counts the layers that are left to it."""
    lib = library()
    names, rows = _columns(entries)
    array = (lib.llama_model_imatrix_data * (len(names) + 1))()  # a nameless entry ends it
    for slot, name, row in zip(array, names, rows, strict=False):
        slot.name, slot.size = name.encode(), row.size
        slot.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = lib.llama_model_quantize_default_params()
    params.ftype = int(file_type)
    params.nthread = torch.get_num_threads()
    if names:
        params.imatrix = array
    overrides = (lib.llama_model_tensor_override * (len(other) + 1))()  # as above
    for place, (tensor, kind) in zip(overrides, other.items(), strict=False):
        # Of the names alone: the library's regular expressions are not those of the caller.
        place.pattern, place.type = f"^{re.escape(tensor)}$".encode(), int(kind)
    if other:
        params.tt_overrides = overrides
    with _listening(lib) as said:
        failed = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if failed:
        raise EdgeError(
            f"llama.cpp could not quantise to {file_type.name}: {''.join(said[-3:]).strip()}",
            hint="is there space on the disk? Else another --scheme",
        )
    stored = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(target).tensors}
    if strayed := [f"{name} as {stored[name].name}" for name, kind in other.items() if stored[name] != kind]:
        raise EdgeError(
            f"llama.cpp stored {', '.join(strayed)}, against what it was told",
            hint="pip install -U llama-cpp-python, or leave those tensors to the --scheme",
        )


def _columns(entries: Sequence[Entry]) -> tuple[list[str], list[NDArray[np.float32]]]:
    """Names, and the importance of each one's columns; the library only borrows them."""
    known = {e.name: e.importance for e in entries if e.importance is not None and e.tensor.ndim == 2}
    rows = [np.ascontiguousarray((row + _SILENCE * row.mean()).numpy(), np.float32) for row in known.values()]
    return list(known), rows


@contextmanager
def _listening(lib: Any) -> Iterator[list[str]]:
    """What the library says goes into a list, and not to the terminal."""
    said: list[str] = []
    before, data = lib.llama_log_callback(), ctypes.c_void_p()
    lib.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    listener = lib.llama_log_callback(lambda _level, text, _data: said.append(text.decode(errors="replace")))
    lib.llama_log_set(listener, ctypes.c_void_p(0))
    try:
        yield said
    finally:
        lib.llama_log_set(before, data)
