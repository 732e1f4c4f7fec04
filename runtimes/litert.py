"""Opens `tflite` parts with LiteRT (ai-edge-litert): XNNPACK on the processor, through the library's C API.

The package's Python classes keep each signature's tensors apart and copy them at every call; the C API takes the
caller's own memory, and so one cache serves all signatures in place.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edge import machine, packed, tflite
from edge.errors import EngineError
from edge.steps import Arrays, StepDecoder
from edge.tflite import Signature, TFLite
from edge.types import Array, OpenOptions, PartFiles, TensorSpec

FORMATS = ("tflite",)
PACKAGE = "ai-edge-litert"

VERSIONS = ((2, 1), (3, 0))  # of the library whose C API is used here: from, and before
_CPU = 1  # of LiteRtHwAccelerators
_REGISTER, _SEVERITY = 24, 25  # of LiteRtEnvOptionTag
_INTEGER = 2  # of LiteRtAnyType
_WARNING, _SILENT = 2, 4  # of LiteRtLogSeverity
_ELEMENTS = {"float32": 1, "float16": 10, "int32": 2, "int8": 9}  # of LiteRtElementType
_ALIGNMENT = 64  # of memory that the library is given
_SLACK = 128  # bytes behind it: kernels read a little further than they use


def version() -> str:
    return metadata.version(PACKAGE)


def open(part: PartFiles, options: OpenOptions) -> LiteRtGraph | StepDecoder:
    """The part's first file. Raises BundleError on a file that is not sound, and EngineError when the library refuses
    it."""
    file = tflite.read(part.files[0])
    if part.decoder is not None:
        decoder = part.decoder
        program = LiteRtProgram(_Model(file, options), file)
        return StepDecoder(program, file.signatures, part, decoder, options.context)
    return LiteRtGraph(_Model(file, options), file)


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
    """Zeros for several arrays, in pages that come when they are touched."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        sizes = [prod(_shape(spec)) * np.dtype(spec.dtype).itemsize for spec in specs]
        places = np.concatenate([[0], np.cumsum([-(-size // _ALIGNMENT) * _ALIGNMENT + _SLACK for size in sizes])])
        try:
            pages = mmap.mmap(-1, int(places[-1]) or 1)
        except OSError as error:
            raise MemoryError(str(error)) from error
        self.arrays: dict[str, Array] = {
            spec.name: np.frombuffer(pages, spec.dtype, prod(_shape(spec)), int(place)).reshape(_shape(spec))
            for spec, place in zip(specs, places[:-1], strict=True)
        }


class _Model:
    """A file as the library compiled it, and its threads."""

    def __init__(self, file: TFLite, options: OpenOptions) -> None:
        self._library = _load()
        environment = self._environment(options)
        model = self._make("LiteRtCreateModelFromFile", "LiteRtDestroyModel", environment.pointer, os.fsencode(file.path))
        with packed.weights(file.path, f"{PACKAGE}-{version()}") as cache:
            self._handle = self._compile(environment, model, options, cache)
        self._environment_handle = environment

    def buffer(self, array: Array) -> _Handle:
        """An array's own memory, as the library is given it."""
        kind = _TensorType(_ELEMENTS[str(array.dtype)], array.ndim, array.shape + (0,) * (8 - array.ndim))
        arguments = ctypes.byref(kind), ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), None
        return self._make("LiteRtCreateTensorBufferFromHostMemory", "LiteRtDestroyTensorBuffer", *arguments, owners=(array,))

    def run(self, signature: int, inputs: Any, outputs: Any) -> None:
        """Raises EngineError."""
        status = self._library.LiteRtRunCompiledModel(
            self._handle.pointer,
            ctypes.c_size_t(signature),
            ctypes.c_size_t(len(inputs)),
            inputs,
            ctypes.c_size_t(len(outputs)),
            outputs,
        )
        if status:
            raise EngineError(f"LiteRT failed while running (status {status})")

    def _environment(self, options: OpenOptions) -> _Handle:
        severity = _WARNING if options.debug else _SILENT
        chosen = (_EnvOption * 2)((_REGISTER, (_INTEGER, _CPU)), (_SEVERITY, (_INTEGER, severity)))
        return self._make("LiteRtCreateEnvironment", "LiteRtDestroyEnvironment", ctypes.c_int(2), chosen)

    def _compile(self, environment: _Handle, model: _Handle, options: OpenOptions, cache: Path | None) -> _Handle:
        threads = options.threads or machine.inspect().cores
        settings = f"num_threads = {threads}\n" + (f'weight_cache_file_path = "{cache}"\n' if cache else "")
        text = ctypes.create_string_buffer(settings.encode())
        chosen = self._make("LiteRtCreateOptions", "LiteRtDestroyOptions", owners=(text,))
        self._check("LiteRtSetOptionsHardwareAccelerators", chosen.pointer, ctypes.c_int(_CPU))
        extra = ctypes.c_void_p()
        self._check("LiteRtCreateOpaqueOptions", b"xnnpack", text, _KEEP, ctypes.byref(extra))
        self._check("LiteRtAddOpaqueOptions", chosen.pointer, extra)
        compiled = self._make(
            "LiteRtCreateCompiledModel",
            "LiteRtDestroyCompiledModel",
            environment.pointer,
            model.pointer,
            chosen.pointer,
            owners=(model, environment, chosen),
        )
        whole = ctypes.c_bool()
        self._check("LiteRtCompiledModelIsFullyAccelerated", compiled.pointer, ctypes.byref(whole))
        if not whole.value:
            raise EngineError(
                "this build of LiteRT computes a part of the file without XNNPACK: slowly, and 4-bit weights not at all",
                hint=f"pip install --force-reinstall {PACKAGE}",
            )
        return compiled

    def _make(self, create: str, destroy: str, *arguments: Any, owners: Sequence[Any] = ()) -> _Handle:
        pointer = ctypes.c_void_p()
        self._check(create, *arguments, ctypes.byref(pointer))
        return _Handle(pointer, getattr(self._library, destroy), *owners)

    def _check(self, function: str, *arguments: Any) -> None:
        if status := getattr(self._library, function)(*arguments):
            raise EngineError(f"LiteRT refused: {function} gave status {status}")


class LiteRtProgram:
    """The signatures of a decoder. Inputs and outputs of all lie in one memory: one runs at a time."""

    def __init__(self, model: _Model, file: TFLite) -> None:
        self._model = model
        self._numbers = {name: number for number, name in enumerate(file.signatures)}
        self._signatures = file.signatures
        self._name = ""
        self._memory: dict[str, Arrays] = {}
        self._buffers: dict[int, _Handle] = {}
        self._calls: dict[str, tuple[Any, Any]] = {}

    def cache(self, length: int) -> Arrays:
        signature = self._signatures[f"decode_{length}"]
        specs = [spec for spec in signature.inputs if spec.name.startswith("past_key_values.")]
        self._calls.clear()
        self._buffers.clear()
        return _Memory(specs).arrays

    def bind(self, name: str) -> Arrays:
        if name not in self._memory:
            signature = self._signatures[name]
            specs = [s for s in (*signature.inputs, *signature.outputs) if not s.name.startswith("past_key_values.")]
            self._memory[name] = _Memory(specs).arrays
        return self._memory[name]

    def run(self, name: str, cache: Arrays, used: int) -> None:
        if name not in self._calls:
            signature, arrays = self._signatures[name], {**cache, **self._memory[name]}
            self._calls[name] = tuple(
                (ctypes.c_void_p * len(specs))(*(self._buffer(arrays[s.name]) for s in specs))
                for specs in (signature.inputs, signature.outputs)
            )
        self._model.run(self._numbers[name], *self._calls[name])

    def _buffer(self, array: Array) -> Any:
        if id(array) not in self._buffers:
            self._buffers[id(array)] = self._model.buffer(array)
        return self._buffers[id(array)].pointer


class LiteRtGraph:
    def __init__(self, model: _Model, file: TFLite) -> None:
        if len(file.signatures) != 1:
            raise EngineError(f"{file.path.name} has {len(file.signatures)} signatures, expected 1")
        self._model = model
        (self._signature,) = file.signatures.values()
        self._arrays = _Memory((*self._signature.inputs, *self._signature.outputs)).arrays
        self._buffers = {name: model.buffer(array) for name, array in self._arrays.items()}
        self._call = tuple(
            (ctypes.c_void_p * len(specs))(*(self._buffers[s.name].pointer for s in specs))
            for specs in (self._signature.inputs, self._signature.outputs)
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._signature.outputs

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """See Graph. Raises EngineError when an array does not fit the graph, or the library fails."""
        names = [spec.name for spec in self.inputs]
        if sorted(feeds) != sorted(names):
            raise EngineError(f"the graph takes {', '.join(names)}, and was fed {', '.join(sorted(feeds)) or 'nothing'}")
        for name, array in feeds.items():
            own = self._arrays[name]
            if array.shape != own.shape or array.dtype != own.dtype:
                raise EngineError(f"{name} is {own.dtype} {list(own.shape)}, and the array {array.dtype} {list(array.shape)}")
            own[:] = array
        self._model.run(0, *self._call)
        found = {}
        for spec in self.outputs:
            target = (into or {}).get(spec.name)
            found[spec.name] = np.empty(_shape(spec), spec.dtype) if target is None else target
            found[spec.name][:] = self._arrays[spec.name]
        return found


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
    paths = [path for folder in folders for path in sorted(folder.glob("*LiteRt.*")) if path.suffix in (".so", ".dylib", ".dll")]
    if not paths:
        raise EngineError(f"{PACKAGE} has no library of its own", hint=f"pip install --force-reinstall {PACKAGE}")
    return ctypes.CDLL(str(paths[0]))


_KEEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)  # the text belongs to who made it
