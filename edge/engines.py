"""The catalogue of engines: what each file of `runtimes/` declares, which are installed, and opening a part.

Evaluators of the export side compute what no engine of this machine can, slowly, to prove it; they declare the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from edge import plugins
from edge.errors import EngineError
from edge.types import CacheKind, Decoder, Graph, OpenOptions, PartFiles

PACKAGE = "runtimes"
EVALUATORS = "exporters.evaluators"
UNKNOWN = "unknown"  # kernels that no library tells of


@dataclass(frozen=True)
class EngineInfo:
    name: str
    formats: tuple[str, ...]  # none: it opens any part, and only when it is asked for by name
    package: str
    installed: bool
    version: str | None
    reason: str | None  # why it cannot be used
    unfit: str | None = None  # why no installation helps on this machine
    extra: str | None = None  # what brings its library, if it is not called like the engine
    wheel: str | None = None  # how to get its library, where no index has it
    # scheme ("": all others) -> bytes in memory for one in the file
    resident: Mapping[str, float] = field(default_factory=dict, hash=False)
    caches: tuple[CacheKind, ...] = ()  # how it can store keys and values that it keeps itself
    item: int = 4  # bytes of a key's or value's number, where neither a graph's inputs nor `caches` tell
    copies: int = 1  # how often keys and values lie in memory, once they outgrew the first room for them
    gpus: tuple[str, ...] = ()  # classes of devices whose graphics processor its usual build computes on
    # fields of edge.planning.roofline.Utilisation -> what its kernels reach of a processor, where most do not
    reaches: Mapping[str, float] = field(default_factory=dict, hash=False)
    narrows: bool = False  # it can be held to fewer instruction sets than the processor has

    @property
    def install(self) -> str:
        return self.wheel or f"pip install 'edge-vlm[{self.extra or self.name}]'"

    def refusal(self, formats: Sequence[str]) -> str | None:
        """Why this engine opens no part of these formats; None when it does."""
        if self.formats and not set(formats) & set(self.formats):
            return f"opens {', '.join(self.formats)}"
        if self.unfit:
            return self.unfit
        if not self.installed:
            return f"{self.reason or f'{self.package} is not installed'}: {self.install}"
        return None


def installed_engines(*, evaluators: bool = False) -> tuple[EngineInfo, ...]:
    """Every engine of the listing, and with `evaluators` those behind them. No engine's library is imported."""
    engines = tuple(_info(PACKAGE, name) for name in plugins.names(PACKAGE))
    return engines + (tuple(_info(EVALUATORS, name) for name in evaluator_names()) if evaluators else ())


def open_part(part: PartFiles, engine: str, options: OpenOptions) -> Graph | Decoder:
    """Raises EngineError when the engine's library does not load, or refuses the part."""
    opened: Graph | Decoder = module(engine).open(part, options)
    return opened


def module(engine: str) -> Any:
    """What opens parts (edge.types.Runtime). Raises EngineError when the engine's library does not load."""
    package = EVALUATORS if engine in evaluator_names() else PACKAGE
    try:
        return plugins.load(package, engine)
    except ImportError as error:
        hint = _info(package, engine).install
        raise EngineError(f"the engine {engine} does not load: {error}", hint=hint) from error


def kernels(engine: str) -> tuple[str, ...]:
    """What its arithmetic uses here, in the words of `edge.devices.host.ISA` or its own (`metal`); empty where neither
    the library tells nor anything shows it. Raises ImportError when the library does not load."""
    if "KERNELS" not in plugins.facts(PACKAGE, engine):
        return ()
    found: tuple[str, ...] = plugins.load(PACKAGE, engine).kernels()
    return found


def evaluator_names() -> tuple[str, ...]:
    """A device may have the run side only."""
    return plugins.names(EVALUATORS) if find_spec(EVALUATORS.partition(".")[0]) else ()


def _info(folder: str, name: str) -> EngineInfo:
    facts = plugins.facts(folder, name)
    package: str = facts["PACKAGE"]
    version = _version(package)
    # A build under another name (onnxruntime-gpu) brings the same module.
    installed = version is not None or find_spec(package.replace("-", "_")) is not None
    reason = None if installed else f"{package} is not installed"
    unfit = facts["ELSEWHERE"] if sys.platform not in facts.get("SYSTEMS", (sys.platform,)) else None
    return EngineInfo(
        name,
        tuple(facts["FORMATS"]),
        package,
        installed,
        version,
        reason,
        unfit=unfit,
        # older pips look extras up as they are spelled
        extra="export" if folder == EVALUATORS else name.replace("_", "-"),
        wheel=facts.get("INSTALL"),
        resident=facts.get("RESIDENT", {}),
        caches=tuple(facts.get("CACHES", ())),
        item=facts.get("ITEM", 4),
        copies=facts.get("COPIES", 1),
        gpus=tuple(facts.get("GPUS", ())),
        reaches=facts.get("REACHES", {}),
        narrows=facts.get("NARROWS", False),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
