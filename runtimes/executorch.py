"""Opens `executorch` parts with ExecuTorch's Python bindings: XNNPACK on the processor. The bindings need torch."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.extension.pybindings import _portable_lib as bindings
from numpy.typing import NDArray

from edge import machine, pte
from edge.errors import BundleError, EngineError
from edge.lift import too_long
from edge.listening import Listening
from edge.pte import Program
from edge.spec import DecoderSpec
from edge.types import Array, OpenOptions, PartFiles, Segment, TensorSpec, Tokens

FORMATS = ("executorch",)
PACKAGE = "executorch"
RESIDENT = {"": 1.2}
REACHES = {"prefill": 0.35, "decode": 0.85}

VISION, EMBEDDING, DECODER = "vision_encoder", "token_embedding", "text_decoder"
_KERNELS = ("kernels/quantized/*quantized_ops_aot_lib.*", "extension/llm/custom_ops/*custom_ops_aot_lib.*")
_THEIRS = re.compile(rb"\[\w+\.(?:cpp|h|cc):\d+\] ")
_IDLE = re.compile(r"\[(?:cpuinfo_utils|threadpool)\.cpp:")  # they say it always, and mean nothing by it


def version() -> str:
    return metadata.version(PACKAGE)


def open(part: PartFiles, options: OpenOptions) -> ExecuTorchGraph | ExecuTorchDecoder:
    """The part's first file. Raises BundleError on a file that is not sound or not what the manifest describes, and
    EngineError when the library refuses it."""
    program = pte.read(part.files[0])
    if part.decoder is None:
        _require(program, part, {VISION: (part.inputs, part.outputs)})
        return ExecuTorchGraph(_Methods(program, (VISION,), options), part)
    c = part.decoder
    longest = _longest(program)
    ids, rows = TensorSpec("", "int64", (1, longest)), TensorSpec("", "float32", (1, longest, c.hidden))
    position, logits = TensorSpec("", "int64", (1,)), TensorSpec("", "float32", (1, 1, c.vocab))
    _require(program, part, {EMBEDDING: ((ids,), (rows,)), DECODER: ((rows, position), (logits,))})
    held = program.constant("get_max_context_len")
    if held is None or held < max(longest, c.context):
        raise BundleError(
            f"{program.path.name} was built for a context of {held}, and the manifest says {c.context}",
            hint=f"edge export … --format executorch --context {c.context}",
        )
    return ExecuTorchDecoder(_Methods(program, (EMBEDDING, DECODER), options), c, longest, options.context)


class ExecuTorchGraph:
    """A method without memory, as a Graph."""

    def __init__(self, methods: _Methods, part: PartFiles) -> None:
        self._methods = methods
        self.inputs, self.outputs = part.inputs, part.outputs

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """See Graph. Raises EngineError when an array does not fit the graph, or the library fails."""
        if feeds.keys() != {spec.name for spec in self.inputs}:
            names = ", ".join(spec.name for spec in self.inputs)
            raise EngineError(f"the graph takes {names}, and was fed {', '.join(sorted(feeds)) or 'nothing'}")
        for spec in self.inputs:
            array = feeds[spec.name]
            if array.shape != spec.shape or array.dtype != spec.dtype:
                raise EngineError(f"{spec.name} is {array.dtype} {list(array.shape)}, and not so in the graph")
        made = self._methods.run(VISION, *(feeds[spec.name] for spec in self.inputs))
        found = {self.outputs[0].name: made}
        for name, array in (into or {}).items():
            if name not in found or array.shape != made.shape or array.dtype != made.dtype:
                raise EngineError(f"{name} is {array.dtype} {list(array.shape)}, and not so in the graph")
            array[:] = found[name]
        return {**found, **(into or {})}


class ExecuTorchDecoder:
    """Keys and values lie in the program's memory. What stands behind the position is not read, and written over."""

    def __init__(self, methods: _Methods, spec: DecoderSpec, longest: int, context: int) -> None:
        self._methods = methods
        self._spec = spec
        self._longest = longest
        self._context = min(context or spec.context, spec.context)
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def extend(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        total = self._position + sum(map(len, segments))
        if total == self._position:
            raise EngineError("a decoder was extended by nothing")
        if total > self._context:
            raise too_long(total, self._context)
        rows = np.concatenate([self._rows(segment) for segment in segments if len(segment)], axis=1)
        for start in range(self._position, total, self._longest):
            piece = rows[:, start - self._position :][:, : self._longest]
            logits = self._methods.run(DECODER, piece, np.array([start]))
        self._position = total
        return np.asarray(logits[0, -1], np.float32)

    def rewind(self, position: int) -> None:
        if not 0 <= position <= self._position:
            raise EngineError(f"cannot rewind to {position} from {self._position}")
        self._position = position

    def _rows(self, segment: Segment) -> NDArray[np.float32]:
        """f32 [1, S, hidden]."""
        if not isinstance(segment, Tokens):
            if segment.rows.ndim != 2 or segment.rows.shape[1] != self._spec.hidden:
                raise EngineError(f"embeddings of {segment.rows.shape}, for a decoder of width {self._spec.hidden}")
            return np.ascontiguousarray(segment.rows[None], np.float32)
        if min(segment.ids) < 0 or max(segment.ids) >= self._spec.vocab:
            raise EngineError(
                f"a token id is outside the vocabulary of {self._spec.vocab}: "
                f"{min(segment.ids)} to {max(segment.ids)} were given"
            )
        ids = np.array([segment.ids])
        pieces = [ids[:, at : at + self._longest] for at in range(0, ids.shape[1], self._longest)]
        return np.concatenate([self._methods.run(EMBEDDING, piece) for piece in pieces], axis=1)


class _Methods:
    """Some methods of a program, loaded; they share their memory, and nothing else does."""

    def __init__(self, program: Program, names: Sequence[str], options: OpenOptions) -> None:
        self._name = program.path.name
        self._heard = Listening(_THEIRS, options.debug)
        with _ONE_AT_A_TIME, self._heard:
            _load_kernels()
            _require_parts(program, names)
            threads = options.threads or machine.inspect().cores
            if bindings._threadpool_get_thread_count() != threads:
                bindings._unsafe_reset_threadpool(threads)  # unsafe while something runs
            try:
                check = bindings.Verification.InternalConsistency
                self._program = bindings._load_program(str(program.path), program_verification=check)
                self._methods = {name: self._program.load_method(name) for name in names}
            except Exception as error:  # its errors share no base class
                raise self._refused("cannot open", error) from error

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
        said = [line for line in self._heard.heard() if _THEIRS.match(line.encode()) and not _IDLE.match(line)]
        why = said[0].partition("] ")[2] if said else str(error).strip().partition("\n")[0] or type(error).__name__
        return EngineError(f"ExecuTorch {what} {self._name}: {why}", hint=f"edge verify the bundle of {self._name}")


def _longest(program: Program) -> int:
    """The longest piece that its decoder takes."""
    method = program.methods.get(DECODER)
    shape = method.inputs[0].shape if method and method.inputs else ()
    return int(shape[1]) if len(shape) == 3 else 0


def _require(
    program: Program,
    part: PartFiles,
    wanted: Mapping[str, tuple[Sequence[TensorSpec], Sequence[TensorSpec]]],
) -> None:
    """Every method is there, with these inputs and outputs; names do not matter."""
    if missing := [name for name in wanted if name not in program.methods]:
        raise BundleError(
            f"{program.path.name} has no method {', '.join(missing)}; it has {', '.join(sorted(program.methods))}",
            hint="export the bundle again",
        )
    for name, ports in wanted.items():
        found = program.methods[name].inputs, program.methods[name].outputs
        for declared, given in zip(ports, found, strict=True):
            here = [(spec.dtype, spec.shape) for spec in given if isinstance(spec, TensorSpec)]
            if here != (there := [(spec.dtype, spec.shape) for spec in declared]):
                raise BundleError(
                    f"{name} of {program.path.name} is not what the manifest describes: {here}, expected {there}",
                    hint=f"edge verify {part.files[0].parent}",
                )


def _require_parts(program: Program, names: Sequence[str]) -> None:
    """What the methods need of a build of the library: it would end in an error without a name, or the process."""
    kernels, backends = set(bindings._get_operator_names()), set(bindings._get_registered_backend_names())
    for name in names:
        method = program.methods[name]
        lacks = [o for o in method.operators if o not in kernels] + [d for d in method.delegates if d not in backends]
        if lacks:
            raise EngineError(
                f"{name} of {program.path.name} needs {', '.join(dict.fromkeys(lacks))}, "
                f"which {PACKAGE} {version()} as installed does not have",
                hint=f"pip install --force-reinstall {PACKAGE}",
            )


def _load_kernels() -> None:
    """Those of quantised tables and of attention are libraries of their own; loading one twice does nothing."""
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for pattern in _KERNELS:
            for library in Path(folder).glob(pattern):
                torch.ops.load_library(str(library))


_ONE_AT_A_TIME: Any = threading.Lock()  # the bindings share one pool of threads
