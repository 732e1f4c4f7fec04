"""Engine for `executorch` parts: ExecuTorch's Python bindings, XNNPACK on the CPU. The bindings need torch."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.extension.pybindings import _portable_lib as bindings

from edge.decoders import methods
from edge.decoders.methods import MethodDecoder, MethodGraph
from edge.errors import EngineError, first_line
from edge.formats.executorch import Program
from edge.formats.native_stderr import CapturedStderr
from edge.types import Array, EngineFacts, OpenOptions, PartFiles

ENGINE: EngineFacts = {
    "formats": ("executorch",),
    "package": "executorch",
    "resident": {"": 1.2},
    "reaches": {"prefill": 0.35, "decode": 0.85},
}
PACKAGE = ENGINE["package"]

_KERNELS = ("kernels/quantized/*quantized_ops_aot_lib.*", "extension/llm/custom_ops/*custom_ops_aot_lib.*")
_LIBRARY_LINES = re.compile(rb"\[\w+\.(?:cpp|h|cc):\d+\] ")
_IDLE = re.compile(r"\[(?:cpuinfo_utils|threadpool)\.cpp:")  # they say it always, and mean nothing by it


def version() -> str:
    return metadata.version(PACKAGE)


def open(part: PartFiles, options: OpenOptions) -> MethodGraph | MethodDecoder:
    """The part's first file. Raises BundleError on a file that is not sound or not what the manifest describes, and
    EngineError when the library refuses it."""
    return methods.opened(part, options, lambda program, names: _Methods(program, names, options))


class _Methods:
    """Some methods of a program, loaded; they share their memory, and nothing else does."""

    def __init__(self, program: Program, names: Sequence[str], options: OpenOptions) -> None:
        self._file = program
        self._stderr = CapturedStderr(_LIBRARY_LINES, options.debug)
        with _ONE_AT_A_TIME, self._stderr:
            _load_kernels()
            _require_parts(program, names)
            _use(options.threads)
            try:
                check = bindings.Verification.InternalConsistency
                self._program = bindings._load_program(str(program.path), program_verification=check)
                self._methods = {name: self._program.load_method(name) for name in names}
            except Exception as error:  # its errors share no base class
                raise self._refused("cannot open", error) from error
            _OPEN.add(self)

    def run(self, name: str, *arrays: Array) -> Array:
        """The one result. Raises EngineError."""
        tensors = [torch.from_numpy(np.require(array, requirements=("C", "W"))) for array in arrays]
        with _ONE_AT_A_TIME:
            try:
                (made,) = self._methods[name].call(tensors, clone_outputs=True)
            except Exception as error:
                raise self._refused(f"failed in {name} of", error) from error
        found: Array = made.numpy()
        return found

    def _refused(self, what: str, error: Exception) -> EngineError:
        said = [line for line in self._stderr.lines() if _LIBRARY_LINES.match(line.encode()) and not _IDLE.match(line)]
        why = said[0].partition("] ")[2] if said else first_line(error)
        return methods.refused(what, self._file, why)


def _use(threads: int) -> None:
    """Raises EngineError where a program is open that was made for another number: it would go on to use that pool."""
    held = bindings._threadpool_get_thread_count()
    if held != threads and len(_OPEN):
        raise EngineError(
            f"ExecuTorch has a program open with {held} threads, and cannot open another with {threads}",
            hint=f"close the other one first, or open this one with threads={held}",
        )
    if held != threads:
        bindings._unsafe_reset_threadpool(threads)


def _require_parts(program: Program, names: Sequence[str]) -> None:
    kernels, backends = bindings._get_operator_names(), bindings._get_registered_backend_names()
    install = f"pip install --force-reinstall {PACKAGE}"
    methods.require_registered(program, names, set(kernels), set(backends), f"{PACKAGE} {version()}", install)


def _load_kernels() -> None:
    """Those of quantised tables and of attention are libraries of their own; loading one twice does nothing."""
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for pattern in _KERNELS:
            for library in Path(folder).glob(pattern):
                torch.ops.load_library(str(library))


_ONE_AT_A_TIME: Any = threading.Lock()  # the bindings share one pool of threads
_OPEN: weakref.WeakSet[_Methods] = weakref.WeakSet()
