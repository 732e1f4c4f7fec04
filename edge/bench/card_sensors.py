"""Sensors of an NVIDIA card: memory, power, temperature, clock and throttling, by NVML; of a Jetson by its files.

Sources: NVIDIA's NVML reference; Jetson Linux Developer Guide (tegrastats, devfreq, soctherm's over-current counters).
What is absent, or may not be read, is None: never zero.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edge.devices import nvidia

_CORE = 0  # NVML_TEMPERATURE_GPU
_SM = 1  # NVML_CLOCK_SM
# nvmlClocksThrottleReason…: SwPowerCap, HwSlowdown, SwThermal, HwThermal, HwPowerBrake. Idle and settings are none.
_SLOWED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
_GPUS = ("*.gpu", "*.ga10b", "*.gv11b", "gpu-gpc-*")  # of devfreq, by the board's generation


class CardSensors:
    """`root` is the directory that holds sys; `load` opens libraries. Close it, or use it as a context."""

    def __init__(self, root: Path = Path("/"), load: Callable[[str], Any] = ctypes.CDLL) -> None:
        self._stack = ExitStack()
        self._known = self._stack.enter_context(nvidia.management(load))
        self._files = tuple(_clocks(root / "sys/class/devfreq"))
        self._counters = tuple(sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")))

    def close(self) -> None:
        self._stack.close()

    def memory(self, process: int) -> int | None:
        """Bytes on the card that a process holds. On a Jetson it is the system's memory, and counted there."""
        if self._known is None:
            return None
        found = nvidia.processes(*self._known)
        return (found or {}).get(process) or None  # 0: not told, or nothing of it is there yet

    def power(self) -> float | None:
        """Watts of the card. A Jetson's whole module has a sensor of its own (`edge.bench.sensors`)."""
        value = self._ask("nvmlDeviceGetPowerUsage")
        return None if value is None else value / 1000

    def temperature(self) -> float | None:
        """Degrees Celsius."""
        return self._ask("nvmlDeviceGetTemperature", _CORE)

    def clock(self) -> float | None:
        """MHz of its multiprocessors."""
        if (value := self._ask("nvmlDeviceGetClockInfo", _SM)) is not None:
            return value
        found = [number / 1e6 for path in self._files if (number := _number(path)) is not None]
        return max(found, default=None)

    def throttled(self) -> int | None:
        """How often something held it back (Jetson: over-current events), or which things do now, as bits."""
        found = [int(number) for path in self._counters if (number := _number(path)) is not None]
        if found:
            return sum(found)
        reasons = ctypes.c_ulonglong(0)
        return None if self._call("nvmlDeviceGetCurrentClocksThrottleReasons", reasons) else reasons.value & _SLOWED

    def _ask(self, name: str, *given: int) -> float | None:
        value = ctypes.c_uint(0)
        return None if self._call(name, value, *given) else float(value.value)

    def _call(self, name: str, into: Any, *given: int) -> int:
        """0 where it worked."""
        function = getattr(self._known[0], name, None) if self._known else None
        return int(function(self._known[1], *given, ctypes.byref(into))) if function and self._known else 1


def _clocks(root: Path) -> Iterator[Path]:
    for pattern in _GPUS:
        yield from sorted(path / "cur_freq" for path in root.glob(pattern))


def _number(path: Path) -> float | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None
