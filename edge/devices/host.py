"""This machine: name, free memory, physical cores, instruction sets, cache folder. Starts no subprocess."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import UsageError

ISA = {  # our name -> the word in Linux's flags
    "neon": "asimd",
    "dotprod": "asimddp",
    "fp16": "asimdhp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "avx2": "avx2",
    "avx512": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx": "amx_tile",
}
# Of each kind of processor, in the order in which they came: what has one mostly has those before it.
GENERATIONS = (
    ("neon", "dotprod", "fp16", "sve", "i8mm", "bf16", "sve2", "sme"),
    ("avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx"),
)
_SYSCTL = {
    "neon": "hw.optional.AdvSIMD",
    "dotprod": "hw.optional.arm.FEAT_DotProd",
    "fp16": "hw.optional.arm.FEAT_FP16",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
    "sme": "hw.optional.arm.FEAT_SME",
    "avx2": "hw.optional.avx2_0",
    "avx512": "hw.optional.avx512f",
}
_WINDOWS_FEATURES = {"neon": 19, "dotprod": 43, "avx2": 40, "avx512": 41}  # PF_… of IsProcessorFeaturePresent
_FALLBACK_MEMORY = 4 << 30


@dataclass(frozen=True)
class _Names:
    """Files of a control group, and of its statistics the bytes that the kernel takes back when it needs them."""

    limit: str
    used: str
    reclaimable: str


_V2 = _Names("memory.max", "memory.current", "inactive_file")
_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@dataclass(frozen=True)
class Machine:
    name: str
    memory_bytes: int
    cores: int
    isa: tuple[str, ...]


def inspect() -> Machine:
    name = platform.processor() or platform.machine()
    if sys.platform in ("linux", "android"):
        return linux(Path("/"), os.sched_getaffinity(0), _android_chip(ctypes.CDLL(None)))
    if sys.platform == "darwin":
        return darwin(_sysctl, _sysctl_text("machdep.cpu.brand_string") or name)
    if sys.platform == "win32":
        return windows(ctypes.WinDLL("kernel32"), name, os.cpu_count() or 1)
    return Machine(name, _FALLBACK_MEMORY, os.cpu_count() or 1, ())


def linux(root: Path, allowed: Iterable[int], chip: str = "") -> Machine:
    """`root` is the directory that holds proc and sys; `allowed` the processors that this process may run on; `chip`
    what Android calls its own: the device tree there has a code name."""
    cpuinfo = _fields(root / "proc/cpuinfo")
    flags = set(f"{cpuinfo.get('flags', '')} {cpuinfo.get('Features', '')}".split())
    tree = _text(root / "proc/device-tree/model").strip("\0\n ")
    # A phone says on which chip it runs, in one place or the other.
    name = (
        chip
        or tree
        or cpuinfo.get("model name", "")
        or cpuinfo.get("Hardware", "")
        or _text(root / "sys/devices/soc0/machine")
    )
    name = name or platform.machine()
    available = _kilobytes(_fields(root / "proc/meminfo").get("MemAvailable", ""))
    memory, quota = _cgroup(root, available or _FALLBACK_MEMORY)
    cores = _physical_cores(root / "sys/devices/system/cpu", sorted(allowed))
    return Machine(name, memory, max(1, min(cores, quota)), tuple(n for n, flag in ISA.items() if flag in flags))


def darwin(sysctl: Callable[[str], int], name: str) -> Machine:
    cores = sysctl("hw.perflevel0.physicalcpu") or sysctl("hw.physicalcpu") or 1
    isa = tuple(feature for feature, key in _SYSCTL.items() if sysctl(key))
    return Machine(name, sysctl("hw.memsize") or _FALLBACK_MEMORY, cores, isa)


def windows(kernel32: ctypes.CDLL, name: str, processors: int) -> Machine:
    class Status(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint32), ("load", ctypes.c_uint32), ("bytes", ctypes.c_uint64 * 7))

    status = Status(size=ctypes.sizeof(Status))
    known = kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    isa = tuple(n for n, feature in _WINDOWS_FEATURES.items() if kernel32.IsProcessorFeaturePresent(feature))
    return Machine(name, int(status.bytes[1]) if known else _FALLBACK_MEMORY, processors, isa)


def up_to(name: str, isa: Sequence[str]) -> tuple[str, ...]:
    """The instruction sets that came before `name`, and itself, of a processor that has `isa`. Raises UsageError."""
    known = next((names for names in GENERATIONS if set(names) & set(isa)), ())
    if name not in known:
        raise UsageError(
            f"no instruction set {name!r} on this kind of processor",
            hint="one of: " + ", ".join(known) if known else "this system does not tell what its processor has",
        )
    return known[: known.index(name) + 1]


def cache_dir() -> Path:
    """The folder for files that this package may lose: below the system's own place for a user's caches. It may not
    exist yet. Raises RuntimeError for a user without a home."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "edge-vlm"


def trim() -> None:
    """Give the system the memory that the C library holds and nobody uses. Only glibc is known to keep much."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def _physical_cores(cpus: Path, allowed: list[int]) -> int:
    """One of each pair of hardware threads, and none of the slow cores beside fast ones: both hurt."""
    speed = {cpu: _number(cpus / f"cpu{cpu}/cpu_capacity") or 1 for cpu in allowed}
    fast = [cpu for cpu in allowed if speed[cpu] * 2 >= max(speed.values())]
    return len({_text(cpus / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in fast})


def _cgroup(root: Path, memory: int) -> tuple[int, int]:
    """What control groups leave of the memory, and (version 2) how many processors' time."""
    quota = 1 << 16
    for group, names in _groups(root):
        if limit := _number(group / names.limit):
            reclaimable = _fields(group / "memory.stat", " ").get(names.reclaimable, "0")
            used = (_number(group / names.used) or 0) - int(reclaimable)
            memory = min(memory, max(0, limit - used))
        allowance, _, period = _text(group / "cpu.max").partition(" ")
        if allowance.isdigit() and period.strip().isdigit():
            quota = min(quota, -(-int(allowance) // int(period)))
    return memory, quota


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The control groups that hold this process, each hierarchy's own one first and its mount last."""
    lines = _text(root / "proc/self/cgroup").splitlines()
    for line in lines if any(line.startswith("0::") for line in lines) else [*lines, "0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = mount / path.strip("/")
        yield from ((place, _V1 if controllers else _V2) for place in (group, *group.parents) if _inside(place, mount))


def _inside(place: Path, mount: Path) -> bool:
    return place == mount or mount in place.parents


def _android_chip(libc: Any) -> str:
    """`QTI SM8550`: what `getprop ro.soc.manufacturer` and `ro.soc.model` say (Android 12). Empty elsewhere."""
    if not hasattr(libc, "__system_property_get"):
        return ""
    words = []
    for name in ("manufacturer", "model"):
        value = ctypes.create_string_buffer(92)  # PROP_VALUE_MAX
        libc.__system_property_get(f"ro.soc.{name}".encode(), value)
        words.append(value.value.decode(errors="replace").strip())
    return " ".join(words) if all(words) else ""


def _sysctl(name: str) -> int:
    """0 where the system has no such value."""
    libc = ctypes.CDLL(find_library("c"))
    value, size = ctypes.c_uint64(0), ctypes.c_size_t(8)
    failed = libc.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value


def _sysctl_text(name: str) -> str:
    """Empty where the system has no such value."""
    libc = ctypes.CDLL(find_library("c"))
    text, size = ctypes.create_string_buffer(128), ctypes.c_size_t(128)
    failed = libc.sysctlbyname(name.encode(), text, ctypes.byref(size), None, 0)
    return "" if failed else text.value.decode(errors="replace")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _fields(path: Path, separator: str = ":") -> dict[str, str]:
    """The first value of each name."""
    found: dict[str, str] = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(separator)
        found.setdefault(name.strip(), value.strip())
    return found


def _kilobytes(text: str) -> int:
    number = text.removesuffix("kB").strip()
    return int(number) * 1024 if number.isdigit() else 0
