"""Types between the rooms: segments of a prompt, graphs, decoders, and what an engine must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge.spec import DecoderSpec

Array = NDArray[Any]
CacheKind = Literal["f16", "q8_0"]
ComputeUnits = Literal["all", "cpu", "gpu", "ane"]


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor. A `str` in the shape is a named, dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Tokens:
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Rows that stand where tokens would. Two segments of equal `key` hold the same rows."""

    rows: NDArray[np.float32]  # [N, hidden]
    key: str

    def __len__(self) -> int:
        return len(self.rows)


Segment = Tokens | Embeddings


class Graph(Protocol):
    """Arrays in, arrays out, no memory."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Outputs by name. An output named in `into` is written into that array, without a copy; the array may be
        one of the feeds, where the graph updates a cache in place."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """Segments in, logits of the last position out. It remembers, and can rewind."""

    @property
    def position(self) -> int:
        """How many positions are remembered."""
        ...

    def extend(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        """Append the segments in one pass; logits `[vocab]` of the last position. Raises ContextError when full."""
        ...

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on."""
        ...


@dataclass(frozen=True)
class OpenOptions:
    """What an engine may be told. `threads` and `context` 0 leave the choice to the engine, and so does `cache` None:
    how one stores keys and values that keeps them itself; `units` is what it may use beside the processor, where it
    can choose; `isa` are the instruction sets that it may use, in the words of `edge.devices.host.ISA`; None: all."""

    threads: int = 0
    context: int = 0
    debug: bool = False
    cache: CacheKind | None = None
    units: ComputeUnits = "all"
    isa: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PartFiles:
    """What an engine needs of a part: where it lies, and what it takes and gives."""

    format: str
    scheme: str
    covers: tuple[str, ...]
    files: tuple[Path, ...]  # the first is the one to open
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    decoder: DecoderSpec | None = None  # of the model that a decoder's part belongs to


class Runtime(Protocol):
    """A module of `runtimes/`. `FORMATS` and `PACKAGE` are literals, so that they are read without importing it; so
    are, where it has them, `RESIDENT` (scheme -> bytes in memory for one in the file; 1 without), `CACHES` (how it can
    store keys and values that it keeps itself), `ITEM` (bytes of one of their numbers, where it has no choice; 4
    without), `COPIES` (how often they lie in memory once they outgrew the first room; 1 without), `GPUS` (classes of
    devices on whose graphics processor it computes), `SYSTEMS` (the only ones that it is made for, as `sys.platform`),
    `ELSEWHERE` (what to say on others), `INSTALL` (how to get its library, where no index has it), `REACHES` (shares of
    a processor's speed that are not what most reach, by the names of `edge.planning.roofline.Utilisation`), `NARROWS`
    (it can be held to `OpenOptions.isa`) and `KERNELS` (how it is known which kernels run; it has `kernels() ->
    tuple[str, ...]` then, the words of `edge.devices.host.ISA` or an own one, as `metal`; empty where it cannot tell),
    and `PRODUCTS` (of what it measures the speed: it has a function `products(threads, memory) ->
    edge.devices.probe.Products` then, which takes an eighth of that memory at most). One whose system places each
    operation on a processor of its
    own has `placement(part)`, which yields `edge.placement.Placed`."""

    FORMATS: tuple[str, ...]  # the formats it opens
    PACKAGE: str  # the distribution that brings its library

    def version(self) -> str: ...

    def open(self, part: PartFiles, options: OpenOptions) -> Graph | Decoder:
        """Raises EngineError, from the library's own error."""
        ...
