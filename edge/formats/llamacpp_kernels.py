"""Kernels of llama.cpp: what its report says that they use, and which one of several libraries of them is loaded."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.errors import EngineError

FEATURES = {  # its words -> those of `edge.devices.host.ISA`
    "NEON": "neon",
    "DOTPROD": "dotprod",
    "FP16_VA": "fp16",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
    "SME": "sme",
    "AVX2": "avx2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx",
}
_GRAPHICS = {"MTL": "metal", "Metal": "metal", "CUDA": "cuda", "Vulkan": "vulkan"}
_LOADING = threading.Lock()


def features(report: str) -> dict[str, bool]:
    """Whether the kernels use what a processor may have."""
    present = _present(report)
    return {ours: theirs in present for theirs, ours in FEATURES.items()}


def graphics(report: str) -> tuple[str, ...]:
    """What computes beside the processor."""
    present = _present(report)
    return tuple(ours for theirs, ours in _GRAPHICS.items() if theirs in present)


def load(ggml: Any, folder: Path, report: Callable[[], str], isa: tuple[str, ...] | None, hint: str) -> None:
    """A build may bring its kernels as several libraries (GGML_CPU_ALL_VARIANTS), of which one is loaded for good:
    with `isa` None the library's own choice for this processor, else the widest that uses nothing more than these.

    Raises EngineError, with the hint, where there is no such choice.
    """
    ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    with _LOADING:
        if not ggml.ggml_backend_reg_count():
            if isa is None:
                ggml.ggml_backend_load_all_from_path(os.fsencode(folder))
                return
            for path in variants(folder):
                kernels = ggml.ggml_backend_load(os.fsencode(path))
                if kernels and _narrow(report(), isa):
                    return
                if kernels:
                    ggml.ggml_backend_unload(ctypes.c_void_p(kernels))
            raise EngineError(f"this build of llama.cpp has no kernels for {' '.join(isa)} alone", hint=hint)
        if isa is not None and not _narrow(report(), isa):
            raise EngineError(
                f"llama.cpp's kernels cannot be held to {' '.join(isa)}: this build has one set of them, or another "
                "one is loaded in this process already",
                hint=hint,
            )


def variants(folder: Path) -> list[Path]:
    """The libraries of kernels that this processor can run, the widest first."""
    scores = {path: ctypes.CDLL(str(path)).ggml_backend_score() for path in folder.glob("*ggml-cpu-*")}
    return sorted((path for path in scores if scores[path]), key=lambda path: -scores[path])


def _narrow(report: str, isa: tuple[str, ...]) -> bool:
    return all(ours in isa for ours, used in features(report).items() if used)


def _present(report: str) -> set[str]:
    """`CPU : NEON = 1 | DOTPROD = 1 | MTL : …`: the features that are used, and the names of what computes."""
    pairs = [entry.partition("=") for entry in report.replace("|", ":").split(":")]
    return {name.strip() for name, equals, value in pairs if not equals or value.strip() == "1"}
