"""The engines of `runtimes/`: which ones this machine has, and opening a part with one of them. And the evaluators of
the export side: they compute what no engine of this machine can, slowly, to prove it."""

from __future__ import annotations

import sys
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from edge import plugins
from edge.errors import EngineError
from edge.planning.plan import EngineInfo
from edge.types import Decoder, Graph, OpenOptions, PartFiles

PACKAGE = "runtimes"
EVALUATORS = "exporters.evaluators"
UNKNOWN = "unknown"  # kernels that no library tells of


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
