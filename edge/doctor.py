"""Diagnosis of this machine: engines, the processor features that they use, memory; and what to install."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import edge
from edge.devices import detect
from edge.devices.nvidia import Graphics
from edge.engines import UNKNOWN, EngineInfo, features, installed_engines, kernels, provider_refusals
from edge.errors import EngineError
from edge.planning import providers

DISTRIBUTION = "edge-vlm"
ARM = {
    "neon": "all arithmetic",
    "dotprod": "8-bit products: w8a8 and w4, 4 at a time",
    "i8mm": "8-bit matrix products: w8a8 and w4, 8 at a time",
    "fp16": "half-precision arithmetic",
    "bf16": "bfloat16 matrix products",
    "sve": "wide vectors",
    "sve2": "wide vectors, integers too",
    "sme": "matrix tiles",
}
X86 = {
    "avx2": "all arithmetic",
    "avx_vnni": "8-bit products: w8a8 and w4",
    "avx512": "wide vectors",
    "avx512_vnni": "8-bit products on wide vectors: w8a8 and w4",
    "avx512_bf16": "bfloat16 products",
    "amx": "matrix tiles, 8-bit and bfloat16",
}


@dataclass(frozen=True)
class Feature:
    name: str
    present: bool
    use: str


@dataclass(frozen=True)
class Engine:
    name: str
    formats: tuple[str, ...]
    version: str | None
    todo: str | None  # what to do before it can be used
    kernels: str | None  # what its arithmetic uses; unknown where nothing tells, None where it cannot run
    known_by: str | None  # how that is known
    providers: Mapping[str, str]  # of a card -> why it cannot be used by this library; empty where it can


@dataclass(frozen=True)
class Diagnosis:
    version: str
    python: str
    system: str
    processor: str
    cores: int
    memory_bytes: int
    card: str | None  # of NVIDIA's, or why its driver shows none; None where there is no driver
    features: tuple[Feature, ...]
    engines: tuple[Engine, ...]
    export_lacks: tuple[str, ...]  # the distributions that `edge export` needs and that are not installed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose() -> Diagnosis:
    here = detect()
    table = ARM if platform.machine().lower() in ("aarch64", "arm64") else X86
    return Diagnosis(
        version=edge.__version__,
        python=platform.python_version(),
        system=platform.platform(terse=True),
        processor=here.name,
        cores=here.threads,
        memory_bytes=here.memory_bytes,
        card=_card(here.graphics),
        features=tuple(Feature(name, name in here.isa, use) for name, use in table.items()),
        engines=tuple(_engine(info, here.isa) for info in installed_engines() if info.formats),
        export_lacks=tuple(_lacking("export")),
    )


def _engine(info: EngineInfo, isa: Sequence[str]) -> Engine:
    todo = info.unfit or (_rebuild(info, isa) if info.installed else info.install)
    found = _kernels(info)
    known_by = info.kernels if found else None
    shown = None if found is None else " ".join(found) or UNKNOWN
    return Engine(info.name, info.formats, info.version, todo, shown, known_by, _providers(info))


def _card(graphics: Graphics) -> str | None:
    """Its driver's CUDA, its memory, and who else computes there."""
    card = graphics.card
    if card is None:
        return graphics.missing or None
    place = "shared with the system" if card.shared else providers.described(card)
    free = "" if card.free_bytes is None else f"{card.free_bytes / 1e6:,.0f} MB "
    version = ".".join(map(str, card.cuda))
    return f"{card.name}, {card.architecture}, CUDA {version}, memory {free}{place}" + f"; {card.closed}" * bool(
        card.closed
    )


def _providers(info: EngineInfo) -> Mapping[str, str]:
    if not info.providers or not info.installed or info.unfit:
        return {}
    try:
        return provider_refusals(info.name)
    except EngineError as error:
        return dict.fromkeys(info.providers, error.message)


def _kernels(info: EngineInfo) -> tuple[str, ...] | None:
    if not info.installed or info.unfit:
        return None
    try:
        return kernels(info.name)
    except ImportError:
        return None


def _rebuild(engine: EngineInfo, isa: Sequence[str]) -> str | None:
    """What to do about a library that was built on the user's machine or another, and uses less than this one has."""
    if engine.build is None:
        return None
    try:
        unused = [name for name, used in features(engine.name).items() if name in isa and not used]
    except ImportError as error:
        return str(error)
    return f"{engine.build} (built without {', '.join(unused)})" if unused else None


def _lacking(extra: str) -> Iterator[str]:
    """The distributions of an extra that are not here, as the package's own metadata lists them."""
    if not _installed(DISTRIBUTION):  # run from its sources: nothing says what belongs to an extra
        yield DISTRIBUTION
        return
    for requirement in metadata.requires(DISTRIBUTION) or ():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if f'extra == "{extra}"' in requirement and name != DISTRIBUTION and not _installed(name):
            yield name


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
