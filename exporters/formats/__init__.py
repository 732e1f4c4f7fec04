"""One folder for each format, named after what it writes, behind one interface.

Literals, read without importing a format:

- `SCHEMES`: role -> scheme -> tolerance of the proof; `edge.recipes` has the bytes of a weight. A role that is no
  component's own (`mmproj`) is written beside the parts, for other people's tools.
- `WIDER`: role -> scheme -> the schemes that a single linear layer may be stored in instead, the cheapest first
  (`Job.widened`). Another role's schemes may be among them, and such that only a single layer is stored in.
- `ACTIVATIONS`: scheme -> how the kernel of a layer that is stored so rounds what it multiplies, to int8 with a dynamic
  scale: "none", not to integers; "tensor", one scale a call; "row", one a position; "block", one a position and block
  of 32; "superblock", of 256.
- `GRIDS`, if it has schemes of 4-bit integers in blocks of 32: scheme -> which scales those can have
  (`exporters.quantization.gptq`). Weights of such a job may be rounded already, and come with their scales.
- `TOOLS`: the packages that write it, whose versions the manifest tells.
- `OPTIONS`: option -> {"default", "help", "for"}: False makes it a flag, () may be given several times; "for" says of
  what, in a refusal. Where it has them: "metavar", what help shows of its value; "role", the one that it is for;
  "adds", a role for each of its values; "keeps", the only roles that are written then, all in this format; "custom"
  True, what no recipe has. `edge export` has an option of that name for each, so no two formats share one.
- `SAMPLES`, if it wants to measure: so many inputs of the module come with a job.

Functions: `encoder(job, module)` and `decoder(job, module)` write one component, after which the module holds the
weights as they were stored, and so computes the reference of what was written. `bounds(job)` names the parameters that
a scheme stores in, or with scales of, a type narrower than float32: each with the magnitude from which on it would
become another number. Where a format has them: `check(job)`, which refuses by the skeleton what cannot be written,
before any work; `size(job)`, its bytes where options change them; `apart(job)`, weight -> bool `[N]`, its rows that
options store otherwise than the scheme does; and `finish(parts, folder, options)`, when all parts are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from edge.bundle.manifest import Part
from edge.types import TensorSpec
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.sources.checkpoint import Checkpoint

# What rounds to infinity in half precision, bfloat16 and float32.
HALF, BRAIN, SINGLE = 65520.0, (2 - 2**-8) * 2.0**127, (2 - 2**-24) * 2.0**127
FITTED = 1.5  # how much larger a 4-bit scale may be for being fitted (`exporters.quantization.integers`)

Progress = Callable[[float], None]  # the share that is done
NOTHING: Mapping[str, Any] = MappingProxyType({})


def silent(done: float) -> None:
    """A Progress that nobody watches."""


class Measured(NamedTuple):
    """An importance for other tools, and for another export: of the checkpoint's own weights, before what is done to
    them here."""

    importance: Mapping[str, Tensor]
    conversations: int


@dataclass(frozen=True)
class Job:
    """What a format is asked to write."""

    component: Component
    scheme: str
    folder: Path
    checkpoint: Checkpoint
    progress: Progress = silent
    # weight -> its columns' (`exporters.quantization.importance`), of the weights as the module has them
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    # weight -> those of its blocks `[N, K / 32]`, where it lies on the scheme's grid already: nothing is searched
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    measured: Measured | None = None  # None: the importance came with the call, or there is none
    samples: Sequence[Tensor] = ()  # inputs of the module, as many as the format's SAMPLES
    options: Mapping[str, Any] = field(default_factory=dict)  # this format's, without those left at their defaults
    widened: Mapping[str, str] = field(default_factory=dict)  # a linear layer's weight -> its own scheme, a wider one

    @property
    def role(self) -> str:
        return self.component.role

    @property
    def skeleton(self) -> nn.Module:
        return self.component.skeleton()

    def stored(self, weight: str) -> str:
        """The scheme of a linear layer, by its weight's name."""
        return self.widened.get(weight, self.scheme)


class Written(NamedTuple):
    files: tuple[Path, ...]  # the first is the one to open
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    details: Mapping[str, Any] = NOTHING  # what only this format has, for the manifest
    companions: tuple[Path, ...] = ()  # beside the part, for other people's tools
    options: Mapping[str, Any] = NOTHING  # those that changed the part, for the manifest


class Finished(NamedTuple):
    parts: tuple[Part, ...]
    companions: tuple[Path, ...] = ()


class Format(Protocol):
    """A folder here, as a module. `check`, `size`, `apart` and `finish` may be missing."""

    def encoder(self, job: Job, module: Encoder) -> Written: ...

    def decoder(self, job: Job, module: LanguageModel) -> Written: ...

    def bounds(self, job: Job) -> Mapping[str, float]: ...


def float_specs(shapes: Mapping[str, tuple[int | str, ...]]) -> tuple[TensorSpec, ...]:
    """Of float32 tensors: name -> shape, a str for a named axis."""
    return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())


def linears(module: nn.Module) -> list[str]:
    """The names of the weights of all linear layers."""
    return [f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def linear_bounds(job: Job, bounds: Mapping[str, float]) -> dict[str, float]:
    """Of each linear layer's weight; `bounds` has those of the schemes that have one."""
    schemes = {name: job.stored(name) for name in linears(job.skeleton)}
    return {name: bounds[scheme] for name, scheme in schemes.items() if scheme in bounds}
