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
from edge.devices.probe import Lender
from edge.errors import EngineError, UsageError
from edge.types import CacheKind, Decoder, EngineFacts, Graph, OpenOptions, PartFiles, Provider

PACKAGE = "runtimes"
EVALUATORS = "exporters.evaluators"
UNKNOWN = "unknown"  # kernels that no library tells of


@dataclass(frozen=True)
class EngineInfo:
    """What an engine declares (`edge.types.EngineFacts`), and whether this machine has it."""

    name: str
    formats: tuple[str, ...]  # none: it opens any part, and only when it is asked for by name
    package: str
    installed: bool
    version: str | None
    reason: str | None  # why it cannot be used
    unfit: str | None = None  # why no installation helps on this machine
    extra: str | None = None  # what brings its library, if it is not called like the engine
    wheel: str | None = None  # how to get its library, where no index has it
    build: str | None = None  # how to build its library for this machine
    systems: tuple[str, ...] = ()  # the only ones that it is made for; none: all
    # scheme ("": all others) -> bytes in memory for one in the file
    resident: Mapping[str, float] = field(default_factory=dict, hash=False)
    caches: tuple[CacheKind, ...] = ()  # how it can store a KV cache that it keeps itself
    item: int = 4  # bytes of a number in the KV cache, where neither a graph's inputs nor `caches` tell
    copies: int = 1  # how often the KV cache lies in memory, once it outgrew its first allocation
    # provider -> `role scheme` of what it has the kernels for; none: all
    providers: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    splits: bool = False  # it can compute some of a decoder's layers on a card, and the others not
    # fields of edge.planning.roofline.Utilisation -> what its kernels reach of a processor, where most do not
    reaches: Mapping[str, float] = field(default_factory=dict, hash=False)
    narrows: bool = False  # it can be held to fewer instruction sets than the processor has
    kernels: str | None = None  # how it is known which kernels run
    matmuls: str | None = None  # whose speed it measures

    @property
    def install(self) -> str:
        return self.wheel or f"pip install 'edge-vlm[{self.extra or self.name}]'"

    def held(self, scheme: str, provider: Provider = "cpu") -> float:
        """Bytes in memory for one in a file of this scheme. A card takes weights as they are stored."""
        return self.resident.get(scheme, self.resident.get("", 1.0)) if provider == "cpu" else 1.0

    def computes(self, provider: str, role: str, scheme: str) -> bool:
        """Whether a provider has the kernels for a part."""
        able = self.providers.get(provider)
        return able is not None and (not able or f"{role} {scheme}" in able)

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


def engine_named(name: str) -> EngineInfo:
    """Raises UsageError, with the names that there are."""
    if name not in plugins.names(PACKAGE):
        raise UsageError(f"no engine {name!r}", hint="one of: " + ", ".join(plugins.names(PACKAGE)))
    return _info(PACKAGE, name)


def made_for(format: str, engines: Sequence[EngineInfo]) -> tuple[EngineInfo, ...]:
    """The engines that open a format where they are installed, in their order."""
    return tuple(engine for engine in engines if format in engine.formats)


def opening(format: str, engines: Sequence[EngineInfo], asked: str | None = None) -> tuple[EngineInfo, ...]:
    """The engines that open a format on this machine, in their order; one that opens any only if it is `asked` for."""
    able = (engine for engine in engines if engine.formats or engine.name == asked)
    return tuple(engine for engine in able if engine.refusal((format,)) is None)


def refusals(formats: Sequence[str], engines: Sequence[EngineInfo]) -> dict[str, str]:
    """Engine -> why it opens no part of these formats."""
    found = {engine.name: engine.refusal(formats) for engine in engines if engine.formats}
    return {name: why for name, why in found.items() if why}


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
    if engine_named(engine).kernels is None:
        return ()
    found: tuple[str, ...] = plugins.load(PACKAGE, engine).kernels()
    return found


def features(engine: str) -> dict[str, bool]:
    """What a library that is built where it is used was built to use, in the words of `edge.devices.host.ISA`; empty
    for any other. Raises ImportError when the library does not load."""
    if engine_named(engine).build is None:
        return {}
    found: dict[str, bool] = plugins.load(PACKAGE, engine).features()
    return found


def provider_refusals(engine: str) -> dict[str, str]:
    """Provider -> why the engine's library cannot compute with it here; empty where it can. Raises EngineError when
    the library does not load."""
    found: dict[str, str] = module(engine).providers()
    return found


def matmul_lender() -> Lender | None:
    """The first engine that measures its own matmuls, and whose library loads."""
    for engine in installed_engines():
        if engine.matmuls and engine.installed:
            try:
                return Lender(engine.name, module(engine.name).matmuls)
            except EngineError:
                continue
    return None


def evaluator_names() -> tuple[str, ...]:
    """None where only the run side is installed."""
    return plugins.names(EVALUATORS)


def _info(folder: str, name: str) -> EngineInfo:
    facts: EngineFacts | None = plugins.facts(folder, name).get("ENGINE")
    if facts is None:
        raise EngineError(
            f"{folder}.{name} declares no ENGINE that can be read without importing it",
            hint="ENGINE: EngineFacts = {…} at its top, of literals only",
        )
    package = facts["package"]
    version = _version(package)
    # A build under another name (onnxruntime-gpu) brings the same module.
    installed = version is not None or find_spec(package.replace("-", "_")) is not None
    systems = facts.get("systems", ())
    return EngineInfo(
        name,
        formats=facts["formats"],
        package=package,
        installed=installed,
        version=version,
        reason=None if installed else f"{package} is not installed",
        unfit=facts.get("elsewhere") if systems and sys.platform not in systems else None,
        # older pips look extras up as they are spelled
        extra="export" if folder == EVALUATORS else name.replace("_", "-"),
        wheel=facts.get("install"),
        build=facts.get("build"),
        systems=systems,
        resident=facts.get("resident", {}),
        caches=facts.get("caches", ()),
        item=facts.get("cache_item", 4),
        copies=facts.get("cache_copies", 1),
        providers=facts.get("providers", {}),
        splits=facts.get("splits", False),
        reaches=facts.get("reaches", {}),
        narrows=facts.get("narrows", False),
        kernels=facts.get("kernels"),
        matmuls=facts.get("matmuls"),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
