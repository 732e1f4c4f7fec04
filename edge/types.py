"""Types between the rooms: segments of a prompt, graphs, decoders, and what an engine must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Required, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge.spec import DecoderSpec

Array = NDArray[Any]
CacheKind = Literal["f16", "q8_0"]
ComputeUnits = Literal["all", "cpu", "gpu", "ane"]
Provider = Literal["cpu", "cuda", "tensorrt"]  # what computes a part


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
    """Rows that stand where tokens would. Two segments of equal `key` and `first` hold the same rows."""

    rows: NDArray[np.float32]  # [N, hidden]
    key: str
    first: int = 0  # which of the rows of this key the first one is
    grid: tuple[int, int] | None = None  # rows and columns of tiles, where these are several views of an image

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


class DeviceArray(Protocol):
    """Memory of a card, which its graph reads and writes where it lies."""

    def read(self) -> Array:
        """A copy."""
        ...

    def write(self, array: Array) -> None:
        """All of it. Raises EngineError."""
        ...


@runtime_checkable
class DeviceGraph(Protocol):
    """A Graph that computes on a card, and takes arrays that lie there in `feeds` and `into`."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Raises EngineError where there is no room."""
        ...


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy of a decoder's KV cache. To go back to fewer positions, restore it and rewind."""

    layout: str  # of its arrays: a decoder of the same bundle restores it where its own is equal
    position: int  # how many positions it holds
    arrays: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


@runtime_checkable
class Decoder(Protocol):
    """Segments in, logits of the last position out. It remembers, and can rewind."""

    @property
    def position(self) -> int:
        """How many positions are remembered."""
        ...

    @property
    def layout(self) -> str | None:
        """Of its snapshots; None where the engine keeps its KV cache out of reach."""
        ...

    def extend(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        """Append the segments in one pass; logits `[vocab]` of the last position. Raises ContextError when full."""
        ...

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on."""
        ...

    def snapshot(self) -> Snapshot:
        """A copy of what is remembered. Raises EngineError where there is no layout."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Remember what a snapshot holds instead. Raises EngineError on one that does not fit; after an error nothing
        is remembered."""
        ...


@dataclass(frozen=True)
class OpenOptions:
    """What an engine is told, as the plan settled it."""

    threads: int  # 1 or more
    context: int  # positions that a decoder may hold: 1 or more, and no more than the model's
    debug: bool = False
    cache: CacheKind | None = None  # how an engine stores a KV cache that it keeps itself; None: as it likes
    units: ComputeUnits = "all"  # what it may use beside the CPU, where it can choose
    isa: tuple[str, ...] | None = None  # the instruction sets it may use (`edge.devices.host.ISA`); None: all
    provider: Provider = "cpu"
    gpu_layers: int | None = None  # of a decoder whose engine can split it, on the card; None: as its build likes
    flash: bool | None = None  # flash attention, where an engine has it; None: as it likes
    bundle: str = ""  # sha256 of its manifest: what is kept between loads belongs to it
    warm: tuple[Path, ...] = ()  # of packed weights that were shipped with the bundle, and may be used
    begun: int = 0  # positions of the first prompt, where a kept prefix is what it begins with; 0: there is none


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
    adopted: bool = False  # whether it is somebody else's file, kept as it was published


class EngineFacts(TypedDict, total=False):
    """The literal `ENGINE` of an engine or evaluator. `edge.engines` reads it without importing the file."""

    formats: Required[tuple[str, ...]]  # what it opens; empty: any part, and only when it is asked for by name
    package: Required[str]  # the distribution that brings its library
    install: str  # how to get that where no index has it; without: an extra of the engine's name
    build: str  # how to build it for this machine; the module then has `features()`
    systems: tuple[str, ...]  # the only ones it is made for, as `sys.platform`; without: all
    elsewhere: str  # what to tell a user of another system
    resident: Mapping[str, float]  # scheme ("": all others) -> bytes in memory per byte of the file; without: 1
    caches: tuple[CacheKind, ...]  # how it can store a KV cache that it keeps itself; without: it keeps none
    cache_item: int  # bytes of a number in a KV cache that it keeps itself and cannot choose; without: 4
    cache_copies: int  # how often the KV cache lies in memory once it outgrew its first allocation; without: 1
    # beside the CPU -> `role scheme` of what it has the kernels for, none: all; the module then has `providers()`
    providers: Mapping[str, tuple[str, ...]]
    splits: bool  # it can compute some of a decoder's layers on a card, and the others not
    reaches: Mapping[str, float]  # fields of `edge.planning.roofline.Utilisation` that its kernels reach instead
    narrows: bool  # it can be held to `OpenOptions.isa`
    kernels: str  # how it is known which kernels run; the module then has `kernels()`
    matmuls: str  # whose speed it measures; the module then has `matmuls()`


class Runtime(Protocol):
    """A module of `runtimes/`. Beside these it has, where `ENGINE` says so:

    - `kernels() -> tuple[str, ...]`: the words of `edge.devices.host.ISA` or an own one, as `metal`; empty where it
      cannot tell.
    - `providers() -> dict[Provider, str]`: why each that `ENGINE` names cannot be used with this build and driver;
      empty where it can.
    - `matmuls(threads, memory) -> edge.devices.probe.Matmuls`: takes an eighth of that memory at most.
    - `features() -> dict[str, bool]`: what its library was built to use, in the words of `edge.devices.host.ISA`.

    One whose system places each operation on a processor has `placement(part) ->
    Iterator[edge.planning.placement.Placed]`.
    """

    ENGINE: EngineFacts

    def version(self) -> str: ...

    def open(
        self,
        part: PartFiles,
        options: OpenOptions,
    ) -> Graph | Decoder:
        """Raises EngineError, from the library's own error."""
        ...
