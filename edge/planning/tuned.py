"""Tuned choices: which engine and how many threads were measured to be the fastest of those that compute the model.

`edge tune` keeps one for a bundle on this machine, with these versions of the engines' libraries; `edge.load` takes it
where the call leaves both open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from edge.bundle.manifest import MANIFEST, Bundle
from edge.devices import DeviceProfile, file_facts, uncached, whole_files
from edge.engines import EngineInfo
from edge.errors import EdgeError

_PLACE = "tuned"  # in the cache folder
_MOST = 1 << 12  # bytes of a file


@dataclass(frozen=True)
class Tuned:
    engine: str | None  # None: the device's own order
    threads: int
    seconds: float  # of the answer that it was chosen by


def choice(bundle: Bundle, device: DeviceProfile, engines: Sequence[EngineInfo]) -> Tuned | None:
    """What was kept; None where nothing was, or it is none of an engine that is installed."""
    with uncached.tolerated():
        place = file_facts.private_folder(_PLACE) / _key(bundle, device, engines)
        with place.open("rb") as file:
            content = file.read(_MOST)
        try:
            return _parsed(content, engines)
        except (ValueError, LookupError, TypeError):
            uncached.damaged(str(place), "what edge tune kept is left out; edge tune measures again")
    return None


def _parsed(content: bytes, engines: Sequence[EngineInfo]) -> Tuned:
    """Raises ValueError, LookupError and TypeError."""
    data = json.loads(content)
    engine, threads = data["engine"], data["threads"]
    known = engine is None or any(info.name == engine and info.installed for info in engines)
    if not known or type(threads) is not int or threads < 1:
        raise ValueError(f"no engine {engine!r} with {threads!r} threads")
    return Tuned(engine, threads, float(data["seconds"]))


def keep(bundle: Bundle, device: DeviceProfile, engines: Sequence[EngineInfo], found: Tuned) -> None:
    """Raises EdgeError where the cache cannot be written."""
    try:
        place = file_facts.private_folder(_PLACE) / _key(bundle, device, engines)
        with whole_files.aside(place) as beside:
            beside.write_text(json.dumps(asdict(found)), encoding="utf-8")
    except (OSError, RuntimeError) as error:
        raise EdgeError(
            f"cannot keep what was measured: {error}", hint="set XDG_CACHE_HOME to a folder of yours"
        ) from error


def _key(bundle: Bundle, device: DeviceProfile, engines: Sequence[EngineInfo]) -> str:
    """Of the bundle's content, the processor and its cores, and the libraries: another of them was not measured."""
    facts = [device.name, device.threads, list(device.isa), sorted((e.name, e.version) for e in engines if e.installed)]
    content = (bundle.path / MANIFEST).read_bytes() + json.dumps(facts).encode()
    return hashlib.sha256(content).hexdigest()[:32] + ".json"
