"""Sensors of the system (Linux): energy, temperature, clock, throttling, swapping, other load.

All of it is read from files (Linux). What is absent, or may not be read, is None: never zero.
Sources: Documentation/ABI of the Linux kernel (powercap, hwmon, thermal, cpufreq); ina3221 on Jetson boards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

_PI_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
_PI_NOW = 0b1111  # under-voltage, clock capped, throttled, soft temperature limit; higher bits: at some time before


class Sensors:
    """`root` is the directory that holds proc and sys."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._counters = tuple(_rapl(root / "sys/class/powercap"))
        self._powers = () if self._counters else tuple(_powers(root / "sys/class/hwmon"))
        self._wrapped = dict.fromkeys(self._counters, 0.0)
        self._before: dict[Path, float] = {}
        cpus = root / "sys/devices/system/cpu"
        self._clocks = tuple(sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")))
        self._throttles = tuple(cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
        self._zones = tuple(_zones(root / "sys/class"))

    def energy(self) -> float | None:
        """Joules since some moment, by the processor packages' own counters."""
        found = []
        for counter in self._counters:
            value = _number(counter)
            if value is None:
                return None
            if value < self._before.get(counter, value):  # it starts anew at its end
                self._wrapped[counter] += _number(counter.with_name("max_energy_range_uj")) or 0.0
            self._before[counter] = value
            found.append(self._wrapped[counter] + value)
        return sum(found) / 1e6 if found else None

    def power(self) -> float | None:
        """Watts right now, where no counter is."""
        for read in self._powers:
            if (watts := read()) is not None:
                return watts
        return None

    def temperature(self) -> float | None:
        """Degrees Celsius of the hottest zone."""
        found = [value / 1000 for zone in self._zones if (value := _number(zone)) is not None]
        return max(found, default=None)

    def clock(self) -> float | None:
        """MHz of the fastest core."""
        found = [value / 1000 for path in self._clocks if (value := _number(path)) is not None]
        if not found:
            lines = _text(self._root / "proc/cpuinfo").splitlines()
            found = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
        return max(found, default=None)

    def throttled(self) -> int | None:
        """How often the processor was slowed down for heat; on a Raspberry Pi, whether it is now."""
        found = [value for path in self._throttles if (value := _number(path)) is not None]
        if found:
            return int(sum(found))
        flags = _text(self._root / _PI_THROTTLED).strip().lower().removeprefix("0x")
        return (int(flags, 16) & _PI_NOW).bit_count() if set(flags) <= set("0123456789abcdef") and flags else None

    def swapped(self) -> int | None:
        """Pages that went to swap or came back, of the whole system."""
        words = [line.split() for line in _text(self._root / "proc/vmstat").splitlines()]
        found = [int(word[1]) for word in words if word[0] in ("pswpin", "pswpout")]
        return sum(found) if found else None

    def swap_of(self, process: int) -> int | None:
        """Bytes of a process that lie in swap."""
        lines = _text(self._root / f"proc/{process}/status").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSwap")), None)

    def busy(self) -> float | None:
        """Seconds of processor time that all processes took, idling and waiting apart."""
        first = _text(self._root / "proc/stat").partition("\n")[0].split()
        if len(first) < 9 or first[0] != "cpu":
            return None
        user, nice, system, _, _, *interrupts = map(int, first[1:9])
        return (user + nice + system + sum(interrupts)) / _ticks()

    def busy_of(self, process: int) -> float | None:
        """Seconds of processor time that one process took."""
        words = _text(self._root / f"proc/{process}/stat").rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _ticks() if len(words) > 12 else None


def _rapl(root: Path) -> Iterable[Path]:
    """The packages only: their cores and the whole platform would count the same joules again."""
    for zone in sorted(root.glob("intel-rapl:*")):
        counter = zone / "energy_uj"
        if _text(zone / "name").startswith("package") and _number(counter) is not None:
            yield counter


def _powers(root: Path) -> Iterable[Callable[[], float | None]]:
    """Jetson's sensor of the whole module first, then whatever gives watts."""
    chips = sorted(root.glob("hwmon*"))
    for chip in chips:
        for label in sorted(chip.glob("in*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            if _text(label).strip() in ("VDD_IN", "POM_5V_IN"):
                yield _product(chip / f"in{number}_input", chip / f"curr{number}_input")
    for chip in chips:
        for path in sorted([*chip.glob("power*_input"), *chip.glob("power*_average")]):
            if _number(path) is not None:
                yield _scaled(path, 1e-6)


def _product(millivolts: Path, milliamperes: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        volts, amperes = _number(millivolts), _number(milliamperes)
        return None if volts is None or amperes is None else volts * amperes * 1e-6

    return read


def _scaled(path: Path, factor: float) -> Callable[[], float | None]:
    def read() -> float | None:
        value = _number(path)
        return None if value is None else value * factor

    return read


def _zones(root: Path) -> Iterable[Path]:
    zones = sorted(root.glob("thermal/thermal_zone*/temp"))
    return zones or sorted(root.glob("hwmon/hwmon*/temp*_input"))


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _number(path: Path) -> float | None:
    text = _text(path).strip()
    return float(text) if text.removeprefix("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # absent, for root only, or a sensor that sleeps
        return ""
