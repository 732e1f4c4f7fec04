"""A decoder from a program whose shapes are fixed: each signature computes so many positions after so many remembered.

`prefill_N` computes the first N positions of a prompt, `prefill_N_T` N more after a cache of T, `decode_T` one more. A
prompt is cut into such pieces. What is too short for its piece is padded in front, so that the last row, whose logits
are asked for, is a real one; the mask hides the padding, and what of the cache is not filled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge import tflite
from edge.errors import BundleError, EngineError
from edge.lift import position_after, require_held
from edge.spec import DecoderSpec
from edge.table import EmbeddingTable
from edge.tflite import Signature, TFLite
from edge.types import Array, OpenOptions, PartFiles, Segment, TensorSpec

ROTATIONS = "rope.npy"  # f32 [2, context, head_dim]: cos, and sin with its first half negated
PAST = "past_key_values."  # what the names of the cache's tensors begin with
HIDDEN = np.float32(-1e9)  # added to the score of what must not be seen
# What a piece costs beside its positions, in positions: all weights are read once more. An estimate.
PIECE = 12
_NAME = re.compile(r"prefill_(?P<first>\d+)|prefill_(?P<later>\d+)_(?P<cache>\d+)|decode_(?P<one>\d+)")

Arrays = Mapping[str, Array]


class Program(Protocol):
    """What an engine makes of a file: memory that native code reads and writes, and a way to run it."""

    def cache(self, length: int) -> Arrays:
        """Zeros for the keys and values of so many positions; what was given before is not used any more."""
        ...

    def bind(self, name: str) -> Arrays:
        """Inputs to fill and outputs to read of one signature, but for the cache's; good until another one is bound."""
        ...

    def run(self, name: str, cache: Arrays) -> None:
        """Raises EngineError. `cache` is what was given last; a signature without one does not read it."""
        ...


@dataclass(frozen=True)
class Piece:
    name: str
    length: int  # positions that it computes
    cache: int  # positions that it remembers; 0: it begins


def opened(part: PartFiles, options: OpenOptions, program: Callable[[TFLite], Program]) -> FixedGraph | StepDecoder:
    """The part's first file, read and bounded before `program` gives it to native code."""
    file = tflite.read(part.files[0])
    if part.decoder is None:
        signature = _only(file, part)
        return FixedGraph(program(file), signature)
    pieces = Pieces.of(file.signatures, part.decoder, part)
    return StepDecoder(program(file), pieces, part, part.decoder, options.context)


class FixedGraph:
    """The one signature of a file as a Graph; arrays are copied to and from where the program has them."""

    def __init__(self, program: Program, signature: Signature) -> None:
        self._program = program
        self._signature = signature

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._signature.outputs

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """See Graph. Raises EngineError when an array does not fit the graph, or the library fails."""
        into, own = into or {}, self._program.bind(self._signature.name)
        if feeds.keys() != {spec.name for spec in self.inputs}:
            names = ", ".join(spec.name for spec in self.inputs)
            raise EngineError(f"the graph takes {names}, and was fed {', '.join(sorted(feeds)) or 'nothing'}")
        for name, array in (*feeds.items(), *into.items()):
            if name not in own or array.shape != own[name].shape or array.dtype != own[name].dtype:
                raise EngineError(f"{name} is {array.dtype} {list(array.shape)}, and not so in the graph")
        for name, array in feeds.items():
            own[name][:] = array
        self._program.run(self._signature.name, {})
        found = {spec.name: into.get(spec.name, np.empty_like(own[spec.name])) for spec in self.outputs}
        for name, array in found.items():
            array[:] = own[name]
        return found


class StepDecoder:
    """Keys `[1, KV, T, D]` and values `[1, KV, D, T]` lie where the program reads them; new ones are written there."""

    def __init__(self, program: Program, pieces: Pieces, part: PartFiles, spec: DecoderSpec, context: int) -> None:
        self._program = program
        self._pieces = pieces
        self._table = EmbeddingTable.open(part.files, spec.vocab, spec.hidden)
        self._rotations = _rotations(part.files, spec)
        self._context = min(context or spec.context, self._pieces.caches[-1])
        self._layers = spec.layers
        self._group = spec.heads // spec.kv_heads
        self._position = 0
        self._length = 0
        self._cache: Arrays = {}

    @property
    def position(self) -> int:
        return self._position

    def extend(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        total = position_after(segments, self._position, self._context)
        count = total - self._position
        self._reserve(total)
        rows = np.empty((count, self._table.hidden), np.float32)
        self._table.embed(segments, rows)
        position, logits = self._position, np.empty(0, np.float32)
        for piece in self._pieces.cut(count, position, self._length):
            taken = rows[position - self._position :][: piece.length]  # all but the last piece are full
            logits = self._run(piece, taken, position)
            position += len(taken)
        self._position = total
        return logits

    def rewind(self, position: int) -> None:
        require_held(position, self._position)
        self._position = position  # what lies behind it is hidden, and written over

    def _run(self, piece: Piece, rows: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        count, padding = len(rows), piece.length - len(rows)
        arrays = self._program.bind(piece.name)
        arrays["inputs_embeds"][0, :padding] = 0
        arrays["inputs_embeds"][0, padding:] = rows
        for name, table in zip(("cos", "sin"), self._rotations, strict=True):
            arrays[name][0, :padding, 0] = 0
            arrays[name][0, padding:, 0] = table[position : position + count]
        self._hide(arrays["mask"][0, 0], piece, padding, position)
        self._program.run(piece.name, self._cache)
        for layer in range(self._layers):
            key, value = f"{layer}.key", f"{layer}.value"
            places = slice(position, position + count)
            self._cache[PAST + key][:, :, places] = arrays[f"present.{key}"][:, :, padding:]
            self._cache[PAST + value][..., places] = arrays[f"present.{value}"][..., padding:]
        logits: NDArray[np.float32] = arrays["logits"][0, -1].copy()
        return logits

    def _hide(self, mask: NDArray[np.float32], piece: Piece, padding: int, position: int) -> None:
        """mask `[G * S, T + S]`: each row sees the filled part of the cache, and itself with what stands before it."""
        mask[:, : min(position, piece.cache)] = 0
        mask[:, position : piece.cache] = HIDDEN
        new = mask[:, piece.cache :].reshape(self._group, piece.length, piece.length)
        new[:] = np.triu(np.full((piece.length, piece.length), HIDDEN), 1)
        if padding:
            new[:, :, :padding] = HIDDEN
            # A row that sees nothing would divide by nothing: padding sees itself.
            new[:, np.arange(padding), np.arange(padding)] = 0

    def _reserve(self, total: int) -> None:
        """A cache for `total` positions, with what the one before holds."""
        if total <= self._length:
            return
        length = next(cache for cache in self._pieces.caches if cache >= total)
        try:
            longer = self._program.cache(length)
        except MemoryError as error:
            raise EngineError(
                f"no memory for the keys and values of {length} positions", hint="load with a smaller context"
            ) from error
        for name, array in self._cache.items():
            keys = name.endswith(".key")
            kept = array[:, :, : self._position] if keys else array[..., : self._position]
            (longer[name][:, :, : self._position] if keys else longer[name][..., : self._position])[:] = kept
        self._cache, self._length = longer, length


@dataclass(frozen=True)
class Pieces:
    """The signatures of a file, by what they compute."""

    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, signatures: Mapping[str, Signature], spec: DecoderSpec, part: PartFiles) -> Pieces:
        """Raises BundleError where signatures are missing, or are not of the decoder that the manifest describes."""
        found = cls(tuple(piece for name in signatures if (piece := _piece(name))))
        wrong = [p.name for p in found.pieces if not _fits(signatures[p.name], p, spec)]
        missing = [f"decode_{cache}" for cache in found.caches if not found.some(1, cache)]
        if wrong or missing or not found.caches or not found.some(0, 0):
            problem = (
                f"wrong: {', '.join(wrong)}" if wrong else f"missing: {', '.join(missing) or 'prefill_N, decode_T'}"
            )
            raise BundleError(
                f"{part.files[0].name} is not the decoder that the manifest describes; signatures {problem}",
                hint="export the bundle again",
            )
        return found

    @cached_property
    def caches(self) -> tuple[int, ...]:
        return tuple(sorted({piece.cache for piece in self.pieces if piece.cache}))

    def some(self, length: int, cache: int) -> bool:
        """Whether there is a piece after that cache, of that length if it is not 0."""
        return any(piece.cache == cache and length in (0, piece.length) for piece in self.pieces)

    def cut(self, count: int, position: int, cache: int) -> list[Piece]:
        """The cheapest pieces for `count` positions after `position`, in a cache of that length. All but the last are
        full."""
        later = [piece for piece in self.pieces if piece.cache == cache]
        first = [piece for piece in self.pieces if not piece.cache] if position == 0 else later
        best: list[tuple[int, list[Piece]]] = [(0, [])]  # for so many positions at the end
        for left in range(1, count + 1):
            able = first if left == count else later
            options = [(piece.length + PIECE + best[max(0, left - piece.length)][0], piece) for piece in able]
            cost, piece = min(options, key=lambda option: option[0])
            best.append((cost, [piece, *best[max(0, left - piece.length)][1]]))
        return best[count][1]


def _piece(name: str) -> Piece | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match["first"]:
        return Piece(name, int(match["first"]), 0)
    return Piece(name, int(match["later"] or 1), int(match["cache"] or match["one"]))


def _fits(signature: Signature, piece: Piece, spec: DecoderSpec) -> bool:
    s, t, kv, d = piece.length, piece.cache, spec.kv_heads, spec.head_dim
    inputs: dict[str, tuple[int, ...]] = {
        "inputs_embeds": (1, s, spec.hidden),
        "cos": (1, s, 1, d),
        "sin": (1, s, 1, d),
        "mask": (1, 1, spec.heads // kv * s, t + s),
    }
    outputs: dict[str, tuple[int, ...]] = {"logits": (1, 1, spec.vocab)}
    for layer in range(spec.layers):
        outputs |= {f"present.{layer}.key": (1, kv, s, d), f"present.{layer}.value": (1, kv, d, s)}
        if t:
            inputs[f"{PAST}{layer}.key"] = (1, kv, t, d)
            inputs[f"{PAST}{layer}.value"] = (1, kv, d, t)
    return _shapes(signature.inputs) == inputs and _shapes(signature.outputs) == outputs


def _shapes(tensors: Sequence[TensorSpec]) -> dict[str, tuple[int | str, ...]]:
    return {t.name: t.shape for t in tensors if t.dtype == "float32"}


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
    try:
        table = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path.name} is damaged: {error}", hint=f"edge verify {path.parent}") from error
    if table.dtype != "float32" or table.shape != (2, spec.context, spec.head_dim):
        raise BundleError(
            f"{path.name} is {table.dtype} {list(table.shape)}, expected [2, {spec.context}, {spec.head_dim}]",
            hint="export the bundle again",
        )
    return table
