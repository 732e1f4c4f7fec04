"""Engine for `gguf` decoders: llama.cpp through the low-level binding of llama-cpp-python."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edge.decoders.base import BaseDecoder, require_ids
from edge.decoders.gguf_table import GGUFTable, Unpack
from edge.devices import host
from edge.errors import EngineError, ProviderError
from edge.formats import gguf, llamacpp_kernels
from edge.formats.gguf import GGUF
from edge.formats.gguf_adopted import check_adopted
from edge.formats.gguf_decoder import check_decoder
from edge.formats.llamacpp_state import require_state
from edge.spec import DecoderSpec
from edge.types import Array, EngineFacts, OpenOptions, PartFiles, Provider, Segment, TensorSpec, Tokens

ENGINE: EngineFacts = {
    "formats": ("gguf",),
    "package": "llama-cpp-python",
    "build": "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --force-reinstall --no-cache-dir --no-binary :all: "
    "llama-cpp-python",
    "resident": {"": 1.02},
    "caches": ("f16", "q8_0"),
    "cache_copies": 2,  # as it moves to a longer memory: old, copy and new are twice the new one in all
    "providers": {"cuda": ()},
    "splits": True,
    "narrows": True,
    "kernels": "the library's own report",
}
PACKAGE, BUILD = ENGINE["package"], ENGINE["build"]
BUILD_CUDA = BUILD.replace("-DGGML_NATIVE=ON", "'-DGGML_NATIVE=ON -DGGML_CUDA=ON'")
BUILD_ALL = "make wheel-arm builds one for ARM with several sets; leave --isa away otherwise"
STEP = 512  # positions that memory is taken for at first; it doubles as they fill, so that memory follows use
_BATCH = 512  # positions that are computed at a time
_STATE = "state"  # the one array of a snapshot
_ERROR = 4  # of the library's log levels


def version() -> str:
    return metadata.version(PACKAGE)


def features() -> dict[str, bool]:
    """Whether the library's kernels use what a processor may have, in the words of `edge.devices.host.ISA`."""
    _load_kernels(None)
    return llamacpp_kernels.features(_report())


def kernels() -> tuple[str, ...]:
    """See `edge.types.Runtime`."""
    used = features()
    return *(name for name in used if used[name]), *llamacpp_kernels.graphics(_report())


def providers() -> dict[Provider, str]:
    """See `edge.types.Runtime`. Nothing is loaded for it: which kernels are is settled when a part is opened."""
    built = any(Path(lib._base_path).glob("*ggml-cuda*"))
    return {"cuda": "" if built else f"this llama.cpp was built without it: {BUILD_CUDA}"}


def open(part: PartFiles, options: OpenOptions) -> LlamaCppDecoder:
    """The part's first file as a decoder. Raises EngineError when the library refuses it, and BundleError on a file
    that the library must not see."""
    path, spec = part.files[0], part.decoder
    if spec is None:
        raise EngineError(
            f"{path.name} is for other tools: what llama.cpp makes of an image is not what the model learned to read",
            hint="export again without --gguf-only: another engine then opens the vision part beside it",
        )
    _load_kernels(options.isa)
    here = host.inspect().isa
    foreign = [name for name, used in features().items() if used and name not in here]
    if foreign and sys.platform == "linux":  # elsewhere the system does not tell all
        raise EngineError(f"llama.cpp was built for a processor with {', '.join(foreign)}", hint=BUILD)
    file = gguf.read(path)
    (check_adopted if part.adopted else check_decoder)(file, spec)
    lib.llama_backend_init()
    _complaints.clear()
    return LlamaCppDecoder(_load(file, spec, options.gpu_layers), _table(file), spec, options)


class LlamaCppDecoder(BaseDecoder):
    """Tokens are looked up by the library. Where embeddings stand among them, all go in as rows: it takes only one or
    the other at a time, and several passes through the weights take longer than one."""

    def __init__(self, model: _Handle, table: GGUFTable, spec: DecoderSpec, options: OpenOptions) -> None:
        super().__init__(table, options.context)
        self._model = model
        self._spec = spec
        self._options = options
        self._kind = options.cache or "f16"
        self.layout = f"{PACKAGE} {version()} {self._kind}"
        self._places = np.arange(options.context, dtype=np.int32)
        # One token at a time is the common case, and its batch is always the same memory.
        self._token, self._place = ctypes.c_int32(), ctypes.c_int32()
        self._step = lib.llama_batch(1, ctypes.pointer(self._token), None, ctypes.pointer(self._place))
        self._logits_type = ctypes.c_float * spec.vocab
        self._length = min(STEP, options.context)
        self._native = self._open(self._length)

    def _embed(self, segments: Sequence[Segment], count: int) -> Array:
        """Ids i32 [S] where all are tokens, else embeddings f32 [1, S, hidden]."""
        ids = [i for segment in segments if isinstance(segment, Tokens) for i in segment.ids]
        if len(ids) < count:
            return super()._embed(segments, count)
        require_ids(ids, self._lookup.vocab)
        return np.array(ids, np.int32)

    def _run(self, embeddings: Array, position: int) -> NDArray[np.float32]:
        inputs = embeddings if embeddings.ndim == 1 else embeddings[0]
        if position + len(inputs) > self._length:
            self._grow(position + len(inputs))
        try:
            self._decode(inputs, position)
            return self._logits()
        except BaseException:  # an interrupt too: a part of it may have gone in
            self._forget(position)
            raise

    def _decode(self, inputs: Array, position: int) -> None:
        """Compute the positions from `position` on; the logits of the last one are kept."""
        count = len(inputs)
        if count == 1 and inputs.ndim == 1:
            self._token.value, self._place.value = inputs[0], position
            batch = self._step
        else:
            batch = lib.llama_batch(count)
            if inputs.ndim == 1:
                batch.token = inputs.ctypes.data_as(_INTS)
            else:
                batch.embd = inputs.ctypes.data_as(_FLOATS)
            batch.pos = self._places[position:].ctypes.data_as(_INTS)
        failed = lib.llama_decode(self._native.pointer, batch)
        if failed:
            error = _refused(f"llama.cpp failed at position {position} ({failed})")
            raise ProviderError(f"the card failed: {error.message}") if self._options.gpu_layers else error

    def _logits(self) -> NDArray[np.float32]:
        found = lib.llama_get_logits_ith(self._native.pointer, -1)
        if not found:
            raise _refused("llama.cpp gave no logits")
        row = np.frombuffer(memoryview(self._logits_type.from_address(ctypes.addressof(found.contents))), np.float32)
        return row.copy()  # the library writes the next ones to the same place

    def _forget(self, position: int) -> None:
        if not lib.llama_memory_seq_rm(lib.llama_get_memory(self._native.pointer), 0, position, -1):
            raise _refused(f"llama.cpp cannot go back to position {position}")

    def _grow(self, total: int) -> None:
        """A longer memory, with what the one before holds."""
        length = self._length
        while length < total:
            length *= 2
        length = min(length, self._context)
        context = self._open(length)
        if self._position:
            _write_state(context, self._state())
        self._native, self._length = context, length

    def _state(self) -> Array:
        """As the library writes it, u8 [bytes]."""
        state = np.empty(lib.llama_state_seq_get_size(self._native.pointer, 0), np.uint8)
        if not lib.llama_state_seq_get_data(self._native.pointer, state.ctypes.data_as(_BYTES), state.size, 0):
            raise _refused(f"llama.cpp cannot give its {self._position} positions")
        return state

    def _save(self) -> dict[str, Array]:
        state = self._state()
        self._require(state, self._position)
        return {_STATE: state}

    def _kept(self, position: int) -> Sequence[TensorSpec]:
        return (TensorSpec(_STATE, "uint8", ("bytes",)),)

    def _load(self, arrays: Mapping[str, Array], position: int) -> None:
        self._require(arrays[_STATE], position)
        if position > self._length:
            self._grow(position)
        try:
            _write_state(self._native, np.ascontiguousarray(arrays[_STATE]))
        except EngineError:
            self._forget(0)
            raise

    def _require(self, state: Array, position: int) -> None:
        require_state(state, position, self._spec.layers, self._spec.kv_heads * self._spec.head_dim, self._kind)

    def _open(self, length: int) -> _Handle:
        settings = lib.llama_context_default_params()
        settings.n_ctx = length
        settings.n_batch = length  # a prompt is one call, whatever its length
        settings.n_ubatch = min(length, _BATCH)
        settings.n_outputs_max = 1
        settings.n_threads = settings.n_threads_batch = self._options.threads
        settings.type_k = settings.type_v = _CACHES[self._kind]
        settings.no_perf = True
        settings.offload_kqv = True  # keys and values of a layer lie where the layer does
        if self._options.flash is not None:
            settings.flash_attn_type = int(self._options.flash)
        pointer = lib.llama_init_from_model(self._model.pointer, settings)
        if not pointer:
            raise _refused(f"llama.cpp cannot make room for {length} positions", hint="load with a smaller context")
        return _Handle(pointer, lib.llama_free, self._model)


def _table(file: GGUF) -> GGUFTable:
    def unpack(kind: str) -> Unpack:
        name = f"dequantize_row_{kind.lower().replace('_k', '_K')}"
        try:
            found: Any = lib.load_shared_library("ggml-base", lib._base_path)[name]
        except (OSError, RuntimeError, AttributeError) as error:
            raise EngineError(f"this build of llama.cpp cannot read {kind}: {error}", hint=BUILD) from error
        found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        return cast("Unpack", found)

    return GGUFTable(file, unpack)


class _Handle:
    """Something of the library's, given back when nothing refers to it any more. `owner` is given back after it."""

    def __init__(self, pointer: int, free: Callable[[int], None], owner: _Handle | None = None) -> None:
        self.pointer = pointer
        self._owner = owner
        weakref.finalize(self, free, pointer)


def _write_state(context: _Handle, state: Array) -> None:
    if not lib.llama_state_seq_set_data(context.pointer, state.ctypes.data_as(_BYTES), state.size, 0):
        raise _refused("llama.cpp does not take positions that were kept")


def _load(file: GGUF, spec: DecoderSpec, gpu_layers: int | None) -> _Handle:
    settings = lib.llama_model_default_params()
    # Blocks are put in another order for the processor: a mapped file would stay in memory beside that copy.
    blocks = any(tensor.blocks for tensor in file.tensors.values())
    settings.load_mode = lib.LLAMA_LOAD_MODE_NONE if blocks else lib.LLAMA_LOAD_MODE_MMAP
    able = lib.llama_supports_gpu_offload()
    if gpu_layers and not able:
        raise ProviderError("llama.cpp finds no card to compute on, or was built for none", hint=BUILD_CUDA)
    settings.n_gpu_layers = (-1 if gpu_layers is None else gpu_layers) if able else 0  # -1: all
    # The words of its vocabulary are not needed here, and their settings are the largest part of what could be unsound.
    overrides = (lib.llama_model_kv_override * 3)()
    overrides[0].key, overrides[0].tag = b"tokenizer.ggml.model", lib.LLAMA_KV_OVERRIDE_TYPE_STR
    overrides[0].value.val_str = b"no_vocab"
    overrides[1].key, overrides[1].tag = f"{file.architecture}.vocab_size".encode(), lib.LLAMA_KV_OVERRIDE_TYPE_INT
    overrides[1].value.val_i64 = spec.vocab
    settings.kv_overrides = overrides
    _offloaded.clear()
    pointer = lib.llama_model_load_from_file(os.fsencode(file.path), settings)
    if not pointer:
        raise _refused(f"llama.cpp cannot open {file.path.name}", hint=f"edge verify {file.path.parent}")
    model = _Handle(pointer, lib.llama_model_free)
    states = lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer)
    if states or not lib.llama_model_has_decoder(pointer) or lib.llama_model_has_encoder(pointer):
        raise EngineError(f"{file.path.name} holds no decoder that can rewind", hint="another model")
    if lib.llama_model_rope_type(pointer) not in _ONE_AXIS:
        raise EngineError(f"{file.path.name} holds a decoder whose positions have several axes", hint="another model")
    if gpu_layers and _offloaded and (there := _offloaded[-1]) < gpu_layers:
        raise ProviderError(f"llama.cpp put {there} layers of {gpu_layers} on the card", hint=f"--gpu-layers {there}")
    return model


def _report() -> str:
    return str(lib.llama_print_system_info().decode())


def _load_kernels(isa: tuple[str, ...] | None) -> None:
    """Raises EngineError where none is held to these instruction sets."""
    # In a wheel a library's second name is a copy of it: only what this one itself is linked to is its own.
    ggml = lib.load_shared_library("ggml", lib._base_path) if sys.platform == "win32" else lib._lib
    lib.llama_log_set(_LOG, None)
    llamacpp_kernels.load(ggml, Path(lib._base_path), _report, isa, BUILD_ALL)


def _refused(what: str, hint: str | None = None) -> EngineError:
    why = ": " + _complaints[0] if _complaints else ""
    _complaints.clear()
    return EngineError(what + why, hint=hint)


def _binding() -> Any:
    """The module llama_cpp.llama_cpp without the package around it, which takes four times as long to import."""
    package = "llama_cpp"
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed", name=package)
    bare = ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    before = sys.modules.get(package)
    sys.modules[package] = bare
    try:
        return import_module(f"{package}.{package}")
    except (OSError, RuntimeError) as error:  # the library itself does not load
        raise ImportError(f"{error}; {BUILD}") from error
    finally:
        if before is None:
            del sys.modules[package]
        else:
            sys.modules[package] = before


def _record(level: int, text: bytes | None, _: Any) -> None:
    line = (text or b"").decode(errors="replace").strip()
    if told := _LAYERS.search(line):
        _offloaded.append(int(told[1]))
    if level == _ERROR and line and not _complaints:
        _complaints.append(line)  # the first one tells the cause
    _log.debug(line)


lib: Any = _binding()
_log = logging.getLogger("edge.llamacpp")
_complaints: list[str] = []
_LAYERS = re.compile(r"offloaded (\d+)/\d+ layers")
_offloaded: list[int] = []  # layers, as the library told while it loaded a model
_LOG = lib.llama_log_callback(_record)  # kept: the library calls it as long as it lives
_ONE_AXIS = (lib.LLAMA_ROPE_TYPE_NONE, lib.LLAMA_ROPE_TYPE_NORM, lib.LLAMA_ROPE_TYPE_NEOX)
_CACHES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}
_INTS, _FLOATS, _BYTES = (ctypes.POINTER(kind) for kind in (ctypes.c_int32, ctypes.c_float, ctypes.c_uint8))
