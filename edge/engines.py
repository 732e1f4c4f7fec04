"""The engines of `runtimes/`: which ones this machine has, and opening a part with one of them."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

from edge import plugins
from edge.errors import EngineError
from edge.plan import EngineInfo
from edge.types import Decoder, Graph, OpenOptions, PartFiles

PACKAGE = "runtimes"


def installed_engines() -> tuple[EngineInfo, ...]:
    """Every engine of the listing. No engine's library is imported."""
    return tuple(_info(name) for name in plugins.names(PACKAGE))


def open_part(part: PartFiles, engine: str, options: OpenOptions) -> Graph | Decoder:
    """Raises EngineError when the engine's library does not load, or refuses the part."""
    try:
        runtime = plugins.load(PACKAGE, engine)
    except ImportError as error:
        raise EngineError(f"the engine {engine} does not load: {error}", hint=_install(engine)) from error
    opened: Graph | Decoder = runtime.open(part, options)
    return opened


def _info(name: str) -> EngineInfo:
    facts = plugins.facts(PACKAGE, name)
    package: str = facts["PACKAGE"]
    version = _version(package)
    # A build under another name (onnxruntime-gpu) brings the same module.
    installed = version is not None or find_spec(package.replace("-", "_")) is not None
    reason = None if installed else f"{package} is not installed"
    resident, caches, gpus = facts.get("RESIDENT", {}), tuple(facts.get("CACHES", ())), tuple(facts.get("GPUS", ()))
    return EngineInfo(name, tuple(facts["FORMATS"]), package, installed, version, reason, resident, caches, gpus)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _install(engine: str) -> str:
    return f"pip install 'edge-vlm[{engine}]'"
