"""Stand-ins for NVIDIA's libraries, and machines with a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edge.devices import DeviceProfile
from edge.devices.nvidia import Card, Graphics

CARD = Card("Orin", (12, 6), (8, 7), 8_000_000_000, None, shared=True)
ADA = Card("Ada", (13, 0), (8, 9), 8_000_000_000, 6_000_000_000, shared=False)


def with_card(device: DeviceProfile, card: Card | None = CARD, missing: str = "") -> DeviceProfile:
    """This machine, and not a profile of another."""
    return replace(device, graphics=Graphics(card, missing), recognised=device.id)


def written(target: Any, value: int | str) -> int:
    """What a C function does with an address that it is given."""
    if isinstance(value, str):
        target.value = value.encode()
    else:
        target._obj.value = value
    return 0


class Driver:
    """libcuda, of one card."""

    def __init__(self, *, started: int = 0, count: int = 1, shared: int = 1, cuda: int = 12060) -> None:
        self.started, self.count, self.cuda = started, count, cuda
        self.attributes: Mapping[int, int] = {18: shared, 75: 8, 76: 7}

    def cuInit(self, flags: int) -> int:
        return self.started

    def cuDeviceGetCount(self, count: Any) -> int:
        return written(count, self.count)

    def cuDeviceGet(self, device: Any, number: int) -> int:
        return written(device, number)

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        return written(name, "Orin")

    def cuDeviceTotalMem_v2(self, total: Any, device: Any) -> int:
        return written(total, 8_000_000_000)

    def cuDriverGetVersion(self, version: Any) -> int:
        return written(version, self.cuda)

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        return written(value, self.attributes[attribute])


class Management:
    """libnvidia-ml. What is in `off` is not told; `processes`: process -> bytes on the card."""

    def __init__(self, processes: Mapping[int, int] | None = None, *, mode: int = 0, off: tuple[str, ...] = ()) -> None:
        self.processes, self.mode, self.off = processes or {}, mode, off
        self.shut = 0
        self.reasons = 0

    def nvmlInit_v2(self) -> int:
        return int("init" in self.off)

    def nvmlShutdown(self) -> int:
        self.shut += 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, handle: Any) -> int:
        return int("handle" in self.off)

    def nvmlDeviceGetMemoryInfo(self, handle: Any, info: Any) -> int:
        if "memory" in self.off:
            return 3
        info._obj.total, info._obj.free, info._obj.used = 8_000_000_000, 6_000_000_000, 2_000_000_000
        return 0

    def nvmlDeviceGetComputeMode(self, handle: Any, mode: Any) -> int:
        return written(mode, self.mode)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, found: Any) -> int:
        if "processes" in self.off:
            return 3
        for entry, (pid, used) in zip(found, self.processes.items(), strict=False):
            entry.pid, entry.used = pid, used
        return written(count, len(self.processes))

    def nvmlDeviceGetPowerUsage(self, handle: Any, value: Any) -> int:
        return 3 if "power" in self.off else written(value, 61_500)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int, value: Any) -> int:
        return 3 if "temperature" in self.off else written(value, 58)

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, value: Any) -> int:
        return 3 if "clock" in self.off else written(value, 1410)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any, value: Any) -> int:
        return 3 if "reasons" in self.off else written(value, self.reasons)


def loading(driver: Any = None, management: Any = None) -> Any:
    """A `ctypes.CDLL` that finds these libraries only."""

    def load(name: str) -> Any:
        found = driver if "cuda" in name else management
        if found is None:
            raise OSError(f"{name}: cannot open shared object file")
        return found

    return load
