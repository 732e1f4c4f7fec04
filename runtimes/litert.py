"""Engine for `tflite` parts: LiteRT (ai-edge-litert) through its C API, XNNPACK on the CPU.

The package's Python classes keep each signature's tensors apart and copy them at every call; the C API takes the
caller's own memory, and so one cache serves all signatures in place.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edge.decoders import signatures
from edge.decoders.signatures import PAST, Arrays, Call, SignatureDecoder, SignatureGraph
from edge.errors import EngineError
from edge.formats import xnnpack_cache
from edge.formats.native_stderr import CapturedStderr
from edge.formats.tflite import TFLite
from edge.types import Array, EngineFacts, OpenOptions, PartFiles, TensorSpec

ENGINE: EngineFacts = {
    "formats": ("tflite",),
    "package": "ai-edge-litert",
    "reaches": {"prefill": 0.4, "decode": 0.57},
    "cache_copies": 2,  # as it moves to a longer memory: the old one, and what a long call gives
}
PACKAGE = ENGINE["package"]

VERSIONS = ((2, 3), (2, 4))  # of the library whose C API is used here: from, and before
CPU_OPTIONS = "kernel_mode = 0\n"  # XNNPACK
_CPU = 1  # of LiteRtHwAccelerators
_REGISTER, _SEVERITY = 24, 25  # of LiteRtEnvOptionTag
_INTEGER = 2  # of LiteRtAnyType
_WARNING, _ERROR = 2, 3  # of LiteRtLogSeverity
_ELEMENTS = {"float32": 1, "float16": 10, "int32": 2, "int8": 9}  # of LiteRtElementType
_ALIGNMENT = 64  # of memory that the library is given
_SUFFIXES = (".so", ".dylib", ".dll")
_DONTNEED = 4  # of madvise
_SLACK = 128  # bytes behind it: kernels read a little further than they use


def version() -> str:
    return metadata.version(PACKAGE)


def open(part: PartFiles, options: OpenOptions) -> SignatureGraph | SignatureDecoder:
    """The part's first file. Raises BundleError on a file that is not sound or not what the manifest describes, and
    EngineError when the library refuses it."""
    return signatures.opened(part, options, lambda file: LiteRtProgram(file, options))


class _Any(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("value", ctypes.c_int64))


class _EnvOption(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_int), ("value", _Any))


class _TensorType(ctypes.Structure):
    """LiteRtRankedTensorType; the rank is seven bits of its word, and there are no strides."""

    _fields_ = (
        ("element", ctypes.c_int),
        ("rank", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    )


class _Handle:
    """Something of the library's, given back when nothing refers to it any more. `owners` are given back after it."""

    def __init__(self, pointer: ctypes.c_void_p, free: Callable[[Any], None], *owners: Any) -> None:
        self.pointer = pointer
        self._owners = owners
        weakref.finalize(self, free, pointer)


class _Memory:
    """Zeros, in pages that come when they are touched; all sets of arrays laid in it lie in the same bytes."""

    def __init__(self, *sets: Sequence[TensorSpec]) -> None:
        try:
            self._pages = mmap.mmap(-1, max(_places(specs)[-1] for specs in sets))
        except OSError as error:
            raise MemoryError(str(error)) from error

    def arrays(self, specs: Sequence[TensorSpec]) -> dict[str, Array]:
        return {
            spec.name: np.frombuffer(self._pages, spec.dtype, prod(_shape(spec)), place).reshape(_shape(spec))
            for spec, place in zip(specs, _places(specs), strict=False)
        }


def _places(specs: Sequence[TensorSpec]) -> list[int]:
    """Where each array begins, and where the last one ends."""
    places = [0]
    for spec in specs:
        size = prod(_shape(spec)) * np.dtype(spec.dtype).itemsize
        places.append(-(-(places[-1] + size + _SLACK) // _ALIGNMENT) * _ALIGNMENT)
    return places


class _Model:
    """A file as the library reads it; each of its signatures is compiled when it is first run, which looks at all
    scales of 4-bit weights: a third of a second for a billion weights. The one that is run first is compiled at once:
    it is needed in any case, and a file that cannot run is told now."""

    def __init__(self, file: TFLite, options: OpenOptions) -> None:
        self._library = _load()
        self._file, self._options = file, options
        self._numbers = {name: number for number, name in enumerate(file.signatures)}
        self._stderr = CapturedStderr(_LIBRARY_LINES, options.debug)
        self._compiled: dict[str, _Compiled] = {}
        self._last = ""
        with self._stderr:
            self._environment = self._start()
            path = os.fsencode(file.path)
            self._model = self._make("LiteRtCreateModelFromFile", "LiteRtDestroyModel", self._environment.pointer, path)
        self.compile(signatures.first(file, options.begun))

    def buffer(self, array: Array) -> _Handle:
        """An array's own memory, as the library is given it."""
        kind = _TensorType(_ELEMENTS[str(array.dtype)], array.ndim, array.shape + (0,) * (8 - array.ndim))
        return self._make(
            "LiteRtCreateTensorBufferFromHostMemory",
            "LiteRtDestroyTensorBuffer",
            ctypes.byref(kind),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            None,
            owners=(array,),
        )

    def compile(self, name: str) -> _Compiled:
        """Raises EngineError."""
        if name not in self._compiled:
            library, warm = f"{PACKAGE}-{version()}", self._options.warm
            with self._stderr, xnnpack_cache.weights(self._file.path, library, warm) as cache:
                before = _mapped(cache)
                handle = self._compile(name, cache)
                self._compiled[name] = _Compiled(handle, _mapped(cache) - before)
        return self._compiled[name]

    def run(self, name: str, inputs: Any, outputs: Any) -> None:
        """Raises EngineError."""
        compiled = self.compile(name)
        if self._last not in ("", name):
            self._compiled[self._last].rest()
        self._last = name
        sizes = [ctypes.c_size_t(number) for number in (self._numbers[name], len(inputs), len(outputs))]
        status = self._library.LiteRtRunCompiledModel(
            compiled.handle.pointer, sizes[0], sizes[1], inputs, sizes[2], outputs
        )
        if status:
            raise EngineError(f"LiteRT failed while running {name} (status {status})")

    def _start(self) -> _Handle:
        severity = _WARNING if self._options.debug else _ERROR
        told = ((_REGISTER, _CPU), (_SEVERITY, severity))
        chosen = (_EnvOption * 2)(*(_EnvOption(tag, _Any(_INTEGER, value)) for tag, value in told))
        return self._make("LiteRtCreateEnvironment", "LiteRtDestroyEnvironment", ctypes.c_int(2), chosen)

    def _compile(self, name: str, cache: Path | None) -> _Handle:
        settings = f"{CPU_OPTIONS}num_threads = {self._options.threads}\n" + (
            f'weight_cache_file_path = "{cache}"\n' if cache else ""
        )
        texts = {
            b"xnnpack": ctypes.create_string_buffer(settings.encode()),
            b"runtime_options_string": ctypes.create_string_buffer(f'selected_signature_keys = ["{name}"]\n'.encode()),
        }
        chosen = self._make("LiteRtCreateOptions", "LiteRtDestroyOptions", owners=(texts,))
        self._check("LiteRtSetOptionsHardwareAccelerators", chosen.pointer, ctypes.c_int(_CPU))
        for identifier, text in texts.items():
            extra = ctypes.c_void_p()
            self._check("LiteRtCreateOpaqueOptions", identifier, text, _KEEP, ctypes.byref(extra))
            self._check("LiteRtAddOpaqueOptions", chosen.pointer, extra)
        compiled = self._make(
            "LiteRtCreateCompiledModel",
            "LiteRtDestroyCompiledModel",
            self._environment.pointer,
            self._model.pointer,
            chosen.pointer,
            owners=(self._model, self._environment, chosen),
        )
        whole = ctypes.c_bool()
        self._check("LiteRtCompiledModelIsFullyAccelerated", compiled.pointer, ctypes.byref(whole))
        if not whole.value:
            raise EngineError(
                f"this build of LiteRT computes a part of {name} without XNNPACK: slowly, and 4-bit weights not at all",
                hint=f"pip install --force-reinstall {PACKAGE}",
            )
        return compiled

    def _make(self, create: str, destroy: str, *arguments: Any, owners: Sequence[Any] = ()) -> _Handle:
        pointer = ctypes.c_void_p()
        self._check(create, *arguments, ctypes.byref(pointer))
        return _Handle(pointer, getattr(self._library, destroy), *owners)

    def _check(self, function: str, *arguments: Any) -> None:
        if status := getattr(self._library, function)(*arguments):
            raise EngineError(f"LiteRT refused: {function} gave status {status}{_complaint(self._stderr)}")


@dataclass(frozen=True)
class _Compiled:
    """One signature, and where the packed weights are mapped for it: the same pages of one file for each."""

    handle: _Handle
    weights: frozenset[tuple[int, int]]  # begin, and bytes

    def rest(self) -> None:
        """Let the mapped pages go, which another signature maps too; they come back when they are read."""
        for begin, size in self.weights:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _DONTNEED)


def _mapped(path: Path | None) -> frozenset[tuple[int, int]]:
    """Where a file is mapped in this process; nothing where the system does not tell."""
    if path is None or sys.platform != "linux" or not path.exists():
        return frozenset()
    inode, found = str(path.stat().st_ino), []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        place, _, _, _, number, *_ = line.split(maxsplit=5)
        if number == inode:
            begin, end = (int(part, 16) for part in place.split("-"))
            found.append((begin, end - begin))
    return frozenset(found)


@dataclass(frozen=True)
class _Bound:
    """A call with the memory that it reads and writes, as the library is given it."""

    call: Call
    arrays: Arrays
    buffers: tuple[Any, Any]  # of the inputs and the outputs, in the signature's order
    owners: Sequence[_Handle]


class LiteRtProgram:
    """The signatures of a file. Inputs and outputs of all lie in one memory: one runs at a time. The library takes the
    sizes of a call from those of the memory that it is given."""

    def __init__(self, file: TFLite, options: OpenOptions) -> None:
        self._model = _Model(file, options)
        self._signatures = file.signatures
        largest = (Call(s.name, s.inputs, s.outputs).own for s in file.signatures.values())
        self._memory = _Memory(*largest)
        self._bound: dict[str, _Bound] = {}
        self._cache: dict[str, tuple[Array, _Handle]] = {}

    def cache(self, call: Call) -> Arrays:
        specs = [spec for spec in call.inputs if spec.name.startswith(PAST)]
        arrays = _Memory(specs).arrays(specs)
        self._bound.clear()
        self._cache = {name: (array, self._model.buffer(array)) for name, array in arrays.items()}
        return arrays

    def bind(self, call: Call) -> Arrays:
        if call.name not in self._bound or self._bound[call.name].call != call:
            self._bound[call.name] = self._bind(call)
        return self._bound[call.name].arrays

    def run(self, call: Call) -> None:
        self._model.run(call.name, *self._bound[call.name].buffers)

    def _bind(self, call: Call) -> _Bound:
        arrays = self._memory.arrays(call.own)
        handles = {name: self._model.buffer(array) for name, array in arrays.items()}
        handles |= {name: handle for name, (_, handle) in self._cache.items()}
        signature = self._signatures[call.name]
        inputs, outputs = (
            (ctypes.c_void_p * len(specs))(*(handles[spec.name].pointer for spec in specs))
            for specs in (signature.inputs, signature.outputs)
        )
        return _Bound(call, arrays, (inputs, outputs), [*handles.values()])


def _complaint(stderr: CapturedStderr) -> str:
    errors = [line for line in stderr.lines() if line.startswith("ERROR")]
    return f": {errors[0].removeprefix('ERROR:').strip()}" if errors else ""


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(int(axis) for axis in spec.shape)


def _load() -> Any:
    """The library itself, without the Python around it."""
    found = tuple(int(number) for number in re.findall(r"\d+", version())[:2])
    if not VERSIONS[0] <= found < VERSIONS[1]:
        raise EngineError(
            f"{PACKAGE} {version()} is not one whose C API is known here",
            hint=f"pip install '{PACKAGE}>={VERSIONS[0][0]}.{VERSIONS[0][1]},<{VERSIONS[1][0]}'",
        )
    spec = find_spec("ai_edge_litert")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    paths = [path for folder in folders for path in folder.glob("*LiteRt.*") if path.suffix in _SUFFIXES]
    if not paths:
        raise EngineError(f"{PACKAGE} has no library of its own", hint=f"pip install --force-reinstall {PACKAGE}")
    return ctypes.CDLL(str(paths[0]))


_LIBRARY_LINES = re.compile(rb"(VERBOSE|DEBUG|INFO|WARNING|ERROR|FATAL): |[IWEF]\d{4} ")  # how its lines begin
_KEEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)  # the text belongs to who made it
