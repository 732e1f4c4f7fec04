"""Graph and decoder for TFLite models with `prefill` and `decode_T` signatures.

Each takes as many positions as it is given, up to a number that the file tells; a longer prompt is cut. Only the new
keys and values come back, and are put into the cache here; a mask hides what of the cache is not filled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.decoders.base import BaseDecoder, no_memory
from edge.decoders.embedding_table import EmbeddingTable
from edge.decoders.function_graph import require_arrays
from edge.errors import BundleError
from edge.formats import npy, tflite
from edge.formats.tflite import Signature, TFLite
from edge.spec import DecoderSpec
from edge.types import Array, OpenOptions, PartFiles, TensorSpec

PREFILL, DECODE = "prefill", "decode_"  # names of signatures; a cache's length follows the second
ROTATIONS = "rope.npy"  # f32 [2, context, head_dim]: cos, and sin with its first half negated
PAST = "past_key_values."  # what the names of the cache's tensors begin with
HIDDEN = np.float32(-1e9)  # added to the score of what must not be seen
_AFTER = re.compile(DECODE + r"\d{1,9}")

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Call:
    """One signature, with the sizes that its tensors have this time."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def own(self) -> tuple[TensorSpec, ...]:
        """What is not the cache."""
        return tuple(spec for spec in (*self.inputs, *self.outputs) if not spec.name.startswith(PAST))


class Program(Protocol):
    """What an engine makes of a file: memory that native code reads and writes, and a way to run it."""

    def cache(self, call: Call) -> Arrays:
        """Zeros for the keys and values that the call remembers; what was given before is not written any more. The
        arrays may be others after another call was bound, with the same in them: take them from the mapping anew."""
        ...

    def bind(self, call: Call) -> Arrays:
        """Inputs to fill and outputs to read, but for the cache's; good until another call is bound."""
        ...

    def run(self, call: Call) -> None:
        """What was bound last, with the cache that was given last. Raises EngineError."""
        ...


def opened(
    part: PartFiles, options: OpenOptions, program: Callable[[TFLite], Program]
) -> SignatureGraph | SignatureDecoder:
    """The part's first file, read and bounded before `program` gives it to native code."""
    file = tflite.read(part.files[0])
    if part.decoder is None:
        signature = _only(file, part)
        return SignatureGraph(program(file), signature)
    calls = Calls.of(file.signatures, part.decoder, part)
    return SignatureDecoder(program(file), calls, part, part.decoder, options.context)


def first(file: TFLite, begun: int) -> str:
    """The signature that a session runs first: after a kept prefix, with a prompt of `begun` positions, the shortest
    cache for that; else the one that the file begins with."""
    names = list(file.signatures)
    lengths = sorted(int(name.removeprefix(DECODE)) for name in names if _AFTER.fullmatch(name))
    length = next((length for length in lengths if begun and length >= begun), 0)
    return f"{DECODE}{length}" if length else names[0]


class SignatureGraph:
    """The one signature of a file as a Graph; arrays are copied to and from where the program has them."""

    def __init__(self, program: Program, signature: Signature) -> None:
        self._program = program
        self._call = Call(signature.name, signature.inputs, signature.outputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._call.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._call.outputs

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """See Graph. Raises EngineError when an array does not fit the graph, or the library fails."""
        into, own = into or {}, self._program.bind(self._call)
        require_arrays(self.inputs, self.outputs, feeds, into)
        for name, array in feeds.items():
            own[name][:] = array
        self._program.run(self._call)
        found = {spec.name: into.get(spec.name, np.empty_like(own[spec.name])) for spec in self.outputs}
        for name, array in found.items():
            array[:] = own[name]
        return found


class SignatureDecoder(BaseDecoder):
    """Keys `[1, KV, T, D]` and values `[1, KV, D, T]` lie where the program reads them; new ones are written there."""

    layout = "signatures"

    def __init__(self, program: Program, calls: Calls, part: PartFiles, spec: DecoderSpec, context: int) -> None:
        super().__init__(EmbeddingTable.open(part.files, spec.vocab, spec.hidden), context)
        self._program = program
        self._calls = calls
        self._rotations = _rotations(part.files, spec)
        self._layers = spec.layers
        self._group = spec.heads // spec.kv_heads
        self._length = 0  # of the cache
        self._cache: Arrays = {}

    def _run(self, embeddings: Array, position: int) -> NDArray[np.float32]:
        count, logits = embeddings.shape[1], np.empty(0, np.float32)
        self._reserve(position + count)
        for start in range(0, count, self._calls.longest):
            logits = self._compute(embeddings[0, start:][: self._calls.longest], position + start)
        return logits

    def _compute(self, rows: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        """One call: rows f32 [S, hidden], and S no longer than a call takes."""
        count, past = len(rows), self._length if position else 0
        places = slice(position, position + count)
        call = self._calls.make(count, past)
        arrays = self._program.bind(call)
        arrays["inputs_embeds"][0] = rows
        for name, table in zip(("cos", "sin"), self._rotations, strict=True):
            arrays[name][0, :, 0] = table[places]
        self._hide(arrays["mask"][0, 0], past, position)
        self._program.run(call)
        for layer in range(self._layers):
            key, value = f"{layer}.key", f"{layer}.value"
            self._cache[PAST + key][:, :, places] = arrays[f"present.{key}"]
            self._cache[PAST + value][..., places] = arrays[f"present.{value}"]
        logits: NDArray[np.float32] = arrays["logits"][0, -1].copy()
        return logits

    def _hide(self, mask: NDArray[np.float32], past: int, position: int) -> None:
        """mask `[G * S, T + S]`: each row sees the filled part of the cache, and itself with what stands before it."""
        count = mask.shape[1] - past
        mask[:, : min(position, past)] = 0
        mask[:, position:past] = HIDDEN
        mask[:, past:].reshape(self._group, count, count)[:] = np.triu(np.full((count, count), HIDDEN), 1)

    def _reserve(self, total: int) -> None:
        """The shortest cache for `total` positions, with what the one before holds: a step reads the whole of it."""
        length = next(cache for cache in self._calls.caches if cache >= total)
        if length == self._length:
            return
        try:
            fitting = self._program.cache(self._calls.make(1, length))
        except MemoryError as error:
            raise no_memory(length) from error
        held = self._filled(self._cache, self._position)
        for name, array in self._filled(fitting, self._position).items():
            array[:] = held[name]
        self._cache, self._length = fitting, length

    def _filled(self, cache: Arrays, position: int) -> dict[str, Array]:
        """The cache up to a position, where it lies."""
        if not position:
            return {}
        keys, values = ([f"{PAST}{layer}.{kind}" for layer in range(self._layers)] for kind in ("key", "value"))
        return {name: cache[name][:, :, :position] for name in keys} | {
            name: cache[name][..., :position] for name in values
        }

    def _save(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self._filled(self._cache, self._position).items()}

    def _kept(self, position: int) -> Sequence[TensorSpec]:
        return self._calls.cache(position)

    def _load(self, arrays: Arrays, position: int) -> None:
        self._reserve(position)
        for name, array in self._filled(self._cache, position).items():
            array[:] = arrays[name]


class Calls:
    """What a file's signatures compute: `longest` positions at most, after caches of `caches` positions."""

    def __init__(self, spec: DecoderSpec, longest: int, caches: Sequence[int]) -> None:
        self._spec = spec
        self.longest = longest
        self.caches = tuple(sorted(caches))
        self._made: dict[int, Call] = {}  # the last one after each cache

    @classmethod
    def of(cls, signatures: Mapping[str, Signature], spec: DecoderSpec, part: PartFiles) -> Calls:
        """Raises BundleError where signatures are missing, or are not of the decoder that the manifest describes."""
        caches = [int(name.removeprefix(DECODE)) for name in signatures if _AFTER.fullmatch(name)]
        sequence = next((t.shape[1:2] for t in _inputs(signatures, PREFILL) if t.name == "inputs_embeds"), ())
        if not caches or not sequence:
            raise BundleError(
                f"{part.files[0].name} has the signatures {', '.join(signatures)}, "
                f"and a decoder has {PREFILL} and {DECODE}T",
                hint="export the bundle again",
            )
        calls = cls(spec, int(sequence[0]), caches)
        wrong = [name for past in (0, *calls.caches) if (name := calls._other(past, signatures))]
        if wrong:
            raise BundleError(
                f"{part.files[0].name} is not the decoder that the manifest describes: {', '.join(wrong)} is another's",
                hint="export the bundle again",
            )
        if calls.caches[-1] < spec.context:
            raise BundleError(
                f"{part.files[0].name} was built for a context of {calls.caches[-1]}, "
                f"and the manifest says {spec.context}",
                hint=f"edge export … --format tflite --context {spec.context}",
            )
        return calls

    def make(self, count: int, past: int) -> Call:
        """The call that computes `count` positions after a cache of `past`; 0: after none."""
        made = self._made.get(past)
        if made is None or made.inputs[0].shape[1] != count:
            made = self._made[past] = self._call(count, past)
        return made

    def cache(self, length: int) -> tuple[TensorSpec, ...]:
        """The keys and values of so many positions."""
        kv, d = self._spec.kv_heads, self._spec.head_dim
        shapes = {"key": (1, kv, length, d), "value": (1, kv, d, length)}
        names = [
            (f"{PAST}{layer}.{kind}", kind) for layer in range(self._spec.layers if length else 0) for kind in shapes
        ]
        return tuple(TensorSpec(name, "float32", shapes[kind]) for name, kind in names)

    def _call(self, s: int, t: int) -> Call:
        kv, d = self._spec.kv_heads, self._spec.head_dim
        inputs: dict[str, tuple[int, ...]] = {
            "inputs_embeds": (1, s, self._spec.hidden),
            "cos": (1, s, 1, d),
            "sin": (1, s, 1, d),
            "mask": (1, 1, self._spec.heads // kv * s, t + s),
        }
        outputs: dict[str, tuple[int, ...]] = {"logits": (1, 1, self._spec.vocab)}
        for layer in range(self._spec.layers):
            outputs |= {f"present.{layer}.key": (1, kv, s, d), f"present.{layer}.value": (1, kv, d, s)}
        return Call(f"{DECODE}{t}" if t else PREFILL, (*_specs(inputs), *self.cache(t)), _specs(outputs))

    def _other(self, past: int, signatures: Mapping[str, Signature]) -> str:
        """The name of the signature where the file says another thing; also of which sizes may be others."""
        call, fewer = self._call(self.longest, past), self._call(self.longest - 1, past)
        found = signatures[call.name]
        same = {*call.inputs} == {*found.inputs} and {*call.outputs} == {*found.outputs}
        free = {
            one.name: tuple(axis for axis, size in enumerate(one.shape) if size != other.shape[axis])
            for one, other in zip((*call.inputs, *call.outputs), (*fewer.inputs, *fewer.outputs), strict=True)
        }
        return "" if same and found.varying == {name: axes for name, axes in free.items() if axes} else call.name


def _inputs(signatures: Mapping[str, Signature], name: str) -> tuple[TensorSpec, ...]:
    return signatures[name].inputs if name in signatures else ()


def _specs(shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())


def _only(file: TFLite, part: PartFiles) -> Signature:
    """The one signature of a graph's file. Raises BundleError when it is not what the manifest describes."""
    found = [s for s in file.signatures.values() if (s.inputs, s.outputs) == (part.inputs, part.outputs)]
    if len(found) != 1 or len(file.signatures) != 1:
        raise BundleError(
            f"{file.path.name} is not the part that the manifest describes: its signatures are "
            f"{', '.join(file.signatures) or 'none'}",
            hint=f"edge verify {file.path.parent}",
        )
    return found[0]


def _rotations(files: Sequence[Path], spec: DecoderSpec) -> NDArray[np.float32]:
    path = next((path for path in files if path.name == ROTATIONS), None)
    if path is None:
        raise BundleError(f"the decoder's part has no {ROTATIONS}", hint="export the bundle again")
    table: NDArray[np.float32] = npy.mapped(path)
    if table.dtype != "float32" or table.shape != (2, spec.context, spec.head_dim):
        raise BundleError(
            f"{path.name} is {table.dtype} {list(table.shape)}, expected [2, {spec.context}, {spec.head_dim}]",
            hint="export the bundle again",
        )
    return table
