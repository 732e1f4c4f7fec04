"""Graph and decoder for ExecuTorch programs (`vision_encoder`, `token_embedding`, `text_decoder`).

A prompt is cut into pieces of the length that the decoder's method takes. The KV cache lies in the program's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge.decoders.base import BaseDecoder
from edge.decoders.function_graph import require_arrays
from edge.errors import BundleError, EngineError
from edge.formats import executorch
from edge.formats.executorch import Program
from edge.formats.executorch_caches import Cache
from edge.formats.xnnpack_graph import BACKEND
from edge.spec import DecoderSpec
from edge.types import Array, OpenOptions, PartFiles, TensorSpec

VISION, EMBEDDING, DECODER = "vision_encoder", "token_embedding", "text_decoder"

_Ports = tuple[Sequence[TensorSpec], Sequence[TensorSpec]]


class Methods(Protocol):
    """What an engine makes of some methods of a program: they share their memory, and nothing else does."""

    def run(self, name: str, *arrays: Array) -> Array:
        """The one result, a copy. Raises EngineError."""
        ...


@runtime_checkable
class KeptMethods(Methods, Protocol):
    """Methods whose KV cache can be read and written where it lies."""

    def read(self, name: str, cache: Cache, size: int) -> Array:
        """Its first bytes, u8 [size], a copy. Raises EngineError."""
        ...

    def write(self, name: str, cache: Cache, data: Array) -> None:
        """Over its first bytes. Raises EngineError."""
        ...


def opened(
    part: PartFiles, options: OpenOptions, methods: Callable[[Program, Sequence[str]], Methods]
) -> MethodGraph | MethodDecoder:
    """The part's first file, read and bounded before `methods` gives it to native code. Raises BundleError on a file
    that is not sound or not what the manifest describes."""
    program = executorch.read(part.files[0])
    if part.decoder is None:
        _require(program, part, {VISION: (part.inputs, part.outputs)})
        return MethodGraph(methods(program, (VISION,)), part)
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
    caches = _caches(program.methods[DECODER].caches, c)
    return MethodDecoder(methods(program, (EMBEDDING, DECODER)), c, longest, options.context, caches)


def require_registered(
    program: Program,
    names: Sequence[str],
    operators: Collection[str],
    backends: Collection[str],
    library: str,
    install: str,
) -> None:
    """What the methods need of a build of the library: it would end in an error without a name, or the process. Nor is
    another backend given what it would have to trust: our reader knows the graphs of one only."""
    for name in names:
        method = program.methods[name]
        lacks = [o for o in method.operators if o not in operators] + [d for d in method.delegates if d not in backends]
        if lacks:
            raise EngineError(
                f"{name} of {program.path.name} needs {', '.join(dict.fromkeys(lacks))}, "
                f"which {library} as installed does not have",
                hint=install,
            )
        if foreign := sorted({*method.delegates} - {BACKEND}):
            raise BundleError(
                f"{program.path.name} hands work to {', '.join(foreign)}, which no part of ours does",
                hint="programs for other backends are for other tools: export the bundle again",
            )


def refused(what: str, program: Program, why: str, hint: str = "") -> EngineError:
    """`what`: cannot open, failed in a method of. Without a hint, the file is to be looked at."""
    return EngineError(
        f"ExecuTorch {what} {program.path.name}: {why}", hint=hint or f"edge verify {program.path.parent}"
    )


class MethodGraph:
    """A method without memory, as a Graph."""

    def __init__(self, methods: Methods, part: PartFiles) -> None:
        self._methods = methods
        self.inputs, self.outputs = part.inputs, part.outputs

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """See Graph. Raises EngineError when an array does not fit the graph, or the library fails."""
        into = into or {}
        require_arrays(self.inputs, self.outputs, feeds, into)
        made = self._methods.run(VISION, *(feeds[spec.name] for spec in self.inputs))
        for array in into.values():
            array[:] = made
        return {self.outputs[0].name: made, **into}


class MethodDecoder(BaseDecoder):
    """What stands behind the position is not read, and written over. Keys and values `[1, T, KV, D]` lie in the
    program's memory, a position behind the other."""

    def __init__(
        self, methods: Methods, spec: DecoderSpec, longest: int, context: int, caches: Sequence[Cache] = ()
    ) -> None:
        """`caches`: where those are; none where that is not known."""
        super().__init__(_MethodLookup(methods, spec, longest), context)
        self._methods = methods
        self._longest = longest
        self._caches = caches
        self._memory = methods if caches and isinstance(methods, KeptMethods) else None
        if self._memory is not None:
            self.layout = "methods"

    def _run(self, embeddings: Array, position: int) -> NDArray[np.float32]:
        count = embeddings.shape[1]
        for start in range(0, count, self._longest):
            piece = embeddings[:, start : start + self._longest]
            logits = self._methods.run(DECODER, piece, np.array([position + start]))
        return np.asarray(logits[0, -1], np.float32)

    def _save(self) -> dict[str, Array]:
        return {
            name: self._held().read(DECODER, cache, 4 * prod(shape)).view(np.float32).reshape(shape)
            for (name, shape), cache in zip(self._shapes(self._position).items(), self._caches, strict=True)
        }

    def _kept(self, position: int) -> Sequence[TensorSpec]:
        return [TensorSpec(name, "float32", shape) for name, shape in self._shapes(position).items()]

    def _load(self, arrays: Mapping[str, Array], position: int) -> None:
        for name, cache in zip(self._shapes(position), self._caches, strict=True):
            self._held().write(DECODER, cache, np.ascontiguousarray(arrays[name]))

    def _shapes(self, position: int) -> dict[str, tuple[int, ...]]:
        """Of the caches' first positions, by the name that a snapshot gives each."""
        return {f"cache.{n}": (1, position, *cache.shape[2:]) for n, cache in enumerate(self._caches)}

    def _held(self) -> KeptMethods:
        assert self._memory is not None
        return self._memory


def _caches(found: Sequence[Cache], spec: DecoderSpec) -> tuple[Cache, ...]:
    """Those of the decoder that the manifest describes; none where they are others."""
    lengths = {cache.shape[1] for cache in found if len(cache.shape) == 4}
    shapes = {(1, length, spec.kv_heads, spec.head_dim) for length in lengths if length >= spec.context}
    known = len(found) == 2 * spec.layers and {cache.shape for cache in found} == shapes
    return tuple(found) if known and len(shapes) == 1 else ()


class _MethodLookup:
    """Embeddings by the program's own method, in pieces of the length that it takes."""

    def __init__(self, methods: Methods, spec: DecoderSpec, longest: int) -> None:
        self._methods = methods
        self._longest = longest
        self.vocab, self.hidden = spec.vocab, spec.hidden

    def gather(self, ids: Sequence[int], out: NDArray[np.float32]) -> None:
        """See `edge.decoders.base.Lookup`."""
        for start in range(0, len(ids), self._longest):
            piece = np.array([ids[start : start + self._longest]])
            out[start : start + self._longest] = self._methods.run(EMBEDDING, piece)[0]


def _longest(program: Program) -> int:
    """The longest piece that its decoder takes."""
    method = program.methods.get(DECODER)
    shape = method.inputs[0].shape if method and method.inputs else ()
    return int(shape[1]) if len(shape) == 3 else 0


def _require(program: Program, part: PartFiles, wanted: Mapping[str, _Ports]) -> None:
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
