"""Device profiles, one JSON file each (`device.schema.json`), and this machine as one of them."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from edge.devices import host, nvidia
from edge.devices.nvidia import Graphics
from edge.errors import UsageError

if TYPE_CHECKING:
    from edge.devices.probe import Lender

SCHEMA = "device.schema.json"  # what each of the other files here must hold
THIS = "this"  # the id of the machine that it runs on
_ESTIMATED = {"usable_memory": "memory_bytes", "cores": "threads", "isa": "isa"}  # a figure -> the field made of it


@dataclass(frozen=True)
class Figure:
    """`value` None: it was looked for and not found. `estimate`: computed, or from general knowledge."""

    value: Any
    unit: str
    source: str
    estimate: bool


@dataclass(frozen=True)
class DeviceProfile:
    """`memory_bytes` is what the system leaves. `isa` names what the engines' kernels use: neon dotprod fp16 i8mm bf16
    sve sve2 sme; avx2 avx512 avx512_vnni avx_vnni avx512_bf16 amx. `estimates` names the fields that nobody read off
    the device. `figures` is everything that is known, in the order of the file."""

    id: str
    name: str
    memory_bytes: int
    threads: int  # performance cores
    isa: tuple[str, ...]
    engines: Mapping[str, tuple[str, ...]]  # role -> engine names, the preferred one first
    recipe: str
    estimates: tuple[str, ...] = ()
    figures: Mapping[str, tuple[Figure, ...]] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    kind: str = "computer"  # or board, jetson, phone
    match: tuple[str, ...] = ()  # patterns of what the machine calls itself
    recognised: str | None = None  # of this machine: the id of the profile it is like
    provider: str | None = None  # what its engines compute with where nothing is said; None: the CPU
    alternatives: tuple[str, ...] = ()  # recipes that `edge fit` compares its own with
    graphics: Graphics = nvidia.NONE  # of this machine

    def known(self, name: str) -> Figure | None:
        """The best of a figure's values, or None. Of several measurements of a bandwidth the highest: the others are
        of fewer bytes at a time, or of writing."""
        found = [figure for figure in self.figures.get(name, ()) if figure.value is not None]
        return max(found, key=lambda figure: figure.value) if len(found) > 1 else next(iter(found), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "class": self.kind,
            "recognised": self.recognised,
            "memory_bytes": self.memory_bytes,
            "threads": self.threads,
            "isa": list(self.isa),
            "engines": {role: list(names) for role, names in self.engines.items()},
            "recipe": self.recipe,
            "alternatives": list(self.alternatives),
            "provider": self.provider,
            "estimates": list(self.estimates),
            "figures": {name: [vars(figure) for figure in found] for name, found in self.figures.items()},
        }


@cache
def profiles() -> tuple[DeviceProfile, ...]:
    """By id, in the alphabet's order; the machines that are none of these come last."""
    listed = [file for file in files(__name__).iterdir() if file.name.endswith(".json") and file.name != SCHEMA]
    found = [_read(json.loads(file.read_bytes())) for file in listed]
    return tuple(sorted(found, key=lambda p: (not p.match, p.id)))


def profile(device: str) -> DeviceProfile:
    """The profile of that id or alias; `this` is the machine that it runs on. Raises UsageError, with the nearest."""
    if device == THIS:
        return detect()
    names = {name: p for p in profiles() for name in (p.id, *p.aliases)}
    if device not in names:
        near = sorted(get_close_matches(device.lower(), names, n=3, cutoff=0.5))
        hint = f"did you mean {', '.join(near)}? edge devices lists all" if near else "one of: " + ", ".join(names)
        raise UsageError(f"no device {device!r}", hint=hint)
    return names[device]


def detect() -> DeviceProfile:
    """This machine: the memory that is free, the physical cores it may use, its instruction set, and what is known of
    the device that it calls itself. Measures nothing."""
    here = host.inspect()
    like = recognise(here.name)
    read = {
        "usable_memory": Figure(round(here.memory_bytes / 2**30, 1), "GiB", "free now", False),
        "cores": Figure(here.cores, "", "physical ones that this process may use", False),
        "isa": Figure(list(here.isa), "", "what the system tells of its processor", False),
    }
    # What a profile of no machine in particular guesses says nothing of this one.
    known = like.figures if like.match else {}
    return replace(
        like,
        id=THIS,
        name=here.name,
        memory_bytes=here.memory_bytes,
        threads=here.cores,
        isa=here.isa,
        estimates=(),
        figures={**known, **{name: (figure,) for name, figure in read.items()}},
        recognised=like.id,
        graphics=nvidia.inspect(),
    )


def recognise(name: str) -> DeviceProfile:
    """The profile whose pattern fits the longest part of what a machine calls itself; else that of its kind."""
    lengths = {
        p.id: max((len(found[0]) for pattern in p.match if (found := re.search(pattern, name))), default=0)
        for p in profiles()
    }
    best = max(lengths, key=lambda device: lengths[device])
    if lengths[best]:
        return profile(best)
    if sys.platform == "darwin":
        return profile("macos")
    return profile("linux-arm64" if platform.machine().lower() in ("aarch64", "arm64") else "linux-x86")


def measured(device: DeviceProfile, lender: Callable[[], Lender | None]) -> DeviceProfile:
    """This machine with what its profile does not tell: bandwidth and throughput, measured in one or two seconds with
    the matmuls of the engine that `lender` finds, if it is needed."""
    from edge.devices import probe  # numpy starts threads, and `confine` is for a process that has none

    if device.id != THIS or (_bandwidth(device) and device.known("int8")):
        return device
    found = probe.measure(device.threads, device.memory_bytes, lender())
    product = f"measured now: a matmul of {found.of}, {probe.MATMUL:.0%} of the peak"
    factor, why = probe.int8_factor(device.isa)
    times = f"{factor} times the fp32 figure: {why}"
    int8 = found.int8 or factor * found.fp32
    here = {
        "bandwidth_measured": Figure(_giga(found.bandwidth), "GB/s", "measured now: reading, all cores", False),
        "fp32": Figure(_giga(found.fp32 / probe.MATMUL), "GFLOPS", product, True),
        "int8": Figure(_giga(int8 / probe.MATMUL), "GOPS", product if found.int8 else times, True),
    }
    if found.decoding:
        share = f"{probe.CHAINED:.0%} of it in a token's many products"
        source = f"measured now: 4-bit weights times one row, {found.of}; {share}"
        here["bandwidth_reached"] = Figure(_giga(probe.CHAINED * found.decoding), "GB/s", source, False)
    return replace(device, figures={**device.figures, **{name: (figure,) for name, figure in here.items()}})


def _giga(value: float) -> float:
    """Four digits tell all that was measured."""
    return float(f"{value / 1e9:.4g}")


def _bandwidth(device: DeviceProfile) -> Figure | None:
    return device.known("bandwidth_measured") or device.known("bandwidth_theoretical")


def _read(entry: Mapping[str, Any]) -> DeviceProfile:
    figures = {
        name: tuple(Figure(**one) for one in (found if isinstance(found, list) else [found]))
        for name, found in entry["figures"].items()
    }
    (memory,), (cores,), (isa,) = figures["usable_memory"], figures["cores"], figures["isa"]
    return DeviceProfile(
        id=entry["id"],
        name=entry["name"],
        memory_bytes=int(memory.value * 2**30),
        threads=cores.value,
        isa=tuple(isa.value),
        engines={role: tuple(names) for role, names in entry["engines"].items()},
        recipe=entry["recipe"],
        estimates=tuple(made for name, made in _ESTIMATED.items() if figures[name][0].estimate),
        figures=figures,
        aliases=tuple(entry["aliases"]),
        kind=entry["class"],
        match=tuple(entry["match"]),
        provider=entry.get("provider"),
        alternatives=tuple(entry.get("alternatives", ())),
    )
