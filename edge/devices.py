"""Devices as data (devices.json), and this machine as one of them."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from edge import machine
from edge.errors import UsageError


@dataclass(frozen=True)
class DeviceProfile:
    """`isa` names what the engines' kernels use: neon dotprod fp16 i8mm bf16 sve sve2 sme; avx2 avx512 avx512_vnni
    avx_vnni avx512_bf16 amx. `estimates` names the fields that nobody read off the device."""

    id: str
    name: str
    memory_bytes: int
    threads: int  # performance cores
    isa: tuple[str, ...]
    engines: Mapping[str, tuple[str, ...]]  # role -> engine names, the preferred one first
    recipe: str
    estimates: tuple[str, ...] = ()


@cache
def profiles() -> tuple[DeviceProfile, ...]:
    data = json.loads(files("edge").joinpath("devices.json").read_bytes())
    return tuple(
        DeviceProfile(
            id=entry["id"],
            name=entry["name"],
            memory_bytes=entry["memory_bytes"],
            threads=entry["threads"],
            isa=tuple(entry["isa"]),
            engines={role: tuple(names) for role, names in entry["engines"].items()},
            recipe=entry["recipe"],
            estimates=tuple(entry["estimates"]),
        )
        for entry in data
    )


def profile(device: str) -> DeviceProfile:
    """The profile of that id. Raises UsageError, with the list."""
    for candidate in profiles():
        if candidate.id == device:
            return candidate
    raise UsageError(f"no device {device!r}", hint="one of: " + ", ".join(p.id for p in profiles()))


def detect() -> DeviceProfile:
    """This machine: the memory that is free, the physical cores it may use, and its instruction set."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    here = machine.inspect()
    kind = "apple_m1" if arm and sys.platform == "darwin" else "generic_arm" if arm else "generic_x86"
    return replace(
        profile(kind),
        id="this",
        name=here.name,
        memory_bytes=here.memory_bytes,
        threads=here.cores,
        isa=here.isa,
        estimates=(),
    )
