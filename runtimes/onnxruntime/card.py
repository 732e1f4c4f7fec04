"""Graph of an ONNX file on a card: ONNX Runtime with CUDA or TensorRT, and what each is told."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort

from edge.devices import file_facts, nvidia
from edge.errors import EngineError, ProviderError, first_line
from edge.formats.native_stderr import CapturedStderr
from edge.planning.placement import Placed
from edge.types import Array, OpenOptions, Provider
from runtimes.onnxruntime.graph import CPU, WARNING, OnnxGraph, settings

_log = logging.getLogger("edge.onnxruntime")
_FULL: dict[Provider, str] = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_CARD = "cuda"  # where OrtValues lie; there is one card, number 0
RECORDED = {"session.record_ep_graph_assignment_info": "1"}
_ENGINES = "tensorrt"  # a folder in the cache folder, beside packed weights
_OWN_LINES = re.compile(rb"(\x1b\[[\d;]*m)*(\d{4}-\d\d-\d\d .*onnxruntime|\s*$)")
_MISSING = re.compile(r"([^\s/:]+\.(?:so[.\d]*|dll))\"?: cannot open|when trying to load \"([^\"]+)")
_LIBRARIES = (
    "pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA's libraries; JetPack has its own, and TensorRT is NVIDIA's; "
    "--provider cpu does without them"
)


def refusals() -> dict[Provider, str]:
    """See `edge.types.Runtime`."""
    built, card = ort.get_available_providers(), nvidia.inspect().card
    wants = str(getattr(ort, "cuda_version", "") or "")
    if card and wants and card.cuda[0] < int(wants.partition(".")[0]):
        runs = ".".join(map(str, card.cuda))
        return dict.fromkeys(_FULL, f"this onnxruntime is for CUDA {wants}, and the driver runs {runs}: update it")
    lacks = f"onnxruntime {ort.__version__} has no {{}}: pip uninstall onnxruntime; pip install onnxruntime-gpu"
    return {name: "" if full in built else lacks.format(full) for name, full in _FULL.items()}


class CardGraph(OnnxGraph):
    """An OnnxGraph on a card. Arrays of the processor go there with each run; a CardArray is read and written where it
    lies."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> CardArray:
        """See `edge.types.DeviceGraph`."""
        try:
            return CardArray(ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), _CARD, 0))
        except Exception as error:  # its errors share no base class
            raise ProviderError(f"no room on the card for {list(shape)} of {dtype}: {first_line(error)}") from error

    def _failed(self, error: Exception) -> EngineError:
        return ProviderError(f"the card failed: {first_line(error)}")

    def _bind_input(self, name: str, array: Any) -> None:
        if isinstance(array, CardArray):
            self._binding.bind_ortvalue_input(name, array.value)
        else:
            super()._bind_input(name, array)

    def _bind_output(self, name: str, array: Any) -> None:
        if isinstance(array, CardArray):
            self._binding.bind_ortvalue_output(name, array.value)
        else:
            super()._bind_output(name, array)


class CardArray:
    """See `edge.types.DeviceArray`."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def read(self) -> Array:
        found: Array = self.value.numpy()
        return found

    def write(self, array: Array) -> None:
        try:
            self.value.update_inplace(np.ascontiguousarray(array))
        except Exception as error:  # its errors share no base class
            raise ProviderError(f"the card failed: {first_line(error)}") from error


def open_session(path: Path, options: OpenOptions, more: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Raises ProviderError where the provider does not load: the library alone would go on with the CPU."""
    name = _FULL[options.provider]
    if why := refusals()[options.provider]:
        raise ProviderError(f"onnxruntime cannot open {path.name} with {name}: {why}", hint=_LIBRARIES)
    chain = [(_FULL[p], _options(p, options)) for p in dict.fromkeys((options.provider, "cuda"))]
    kept = chain[0][1].get("trt_engine_cache_path")
    first, started = kept is not None and not any(Path(kept).iterdir()), perf_counter()
    if first:
        _log.warning("TensorRT builds its engines of %s, once: this takes minutes", path.name)
    chosen, told, failed = settings(options.threads, options.debug), io.StringIO(), ""
    chosen.log_severity_level = WARNING
    for key, value in {"session.use_device_allocator_for_initializers": "1", **more}.items():
        chosen.add_session_config_entry(key, value)
    with CapturedStderr(_OWN_LINES, options.debug) as stderr:
        with contextlib.redirect_stdout(told):
            ort.preload_dlls(msvc=False)  # CUDA's own wheels, where they are installed
        try:
            session = ort.InferenceSession(str(path), chosen, providers=[*chain, CPU], enable_fallback=0)
        except Exception as error:  # its errors share no base class
            failed = first_line(error)
        lines = [*stderr.lines(), *told.getvalue().splitlines()]
    if failed or name not in session.get_providers():
        missing = [f"{found[1] or found[2]} is not there" for line in lines if (found := _MISSING.search(line))]
        why = missing[0] if missing else failed or "it gives no reason; --debug shows its messages"
        raise ProviderError(f"onnxruntime cannot open {path.name} with {name}: {why}", hint=_LIBRARIES)
    if first:
        _log.warning("TensorRT built its engines of %s in %.0f s; they are kept", path.name, perf_counter() - started)
    return session


def _options(provider: Provider, options: OpenOptions) -> dict[str, str]:
    """Without TF32, which would round fp32 parts to 10 bits of mantissa behind the proof's back."""
    if provider == "cuda":
        return {
            "device_id": "0",
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
    place = _engine_folder(options)
    return {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(place),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(place),
    }


def _engine_folder(options: OpenOptions) -> Path:
    """Engines hold for one bundle, version, driver and card."""
    card = nvidia.inspect().card
    key = repr((options.bundle, ort.__version__, card and (card.name, card.compute, card.cuda)))
    try:
        return file_facts.private_folder(_ENGINES, hashlib.sha256(key.encode()).hexdigest()[:32])
    except (OSError, RuntimeError) as error:
        raise ProviderError(f"TensorRT's engines cannot be kept: {error}", hint="--provider cuda keeps none") from error


def assigned(session: Any) -> Iterator[Placed]:
    """Where each node of a session runs, where it was opened with `RECORDED`."""
    for subgraph in session.get_provider_graph_assignment_info():
        here = subgraph.ep_name == CPU
        for node in subgraph.get_nodes():
            why = "the library chose it" if here else ""
            yield Placed("main", node.op_type, node.name, "cpu" if here else "gpu", why)
