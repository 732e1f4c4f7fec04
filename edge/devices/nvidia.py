"""NVIDIA card of this machine: what its driver says of it, through ctypes. Starts no process, takes no memory there.

Sources: NVIDIA's CUDA Driver API and NVML reference manuals. A Jetson's card shares the system's memory, and its driver
brings little of NVML: what that does not tell is not known.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Load = Callable[[str], Any]

_DRIVER, _NVML = ("nvcuda.dll", "nvml.dll") if sys.platform == "win32" else ("libcuda.so.1", "libnvidia-ml.so.1")
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76  # of CUdevice_attribute
_WHY = {
    3: "the driver's module is not loaded",
    34: "a stub of the driver's library stands in its place",
    _NO_DEVICE: "the driver sees no card",
    802: "the driver is not ready",
    803: "library and kernel module of the driver are of different versions: restart after an update",
    804: "this card does not take a driver newer than its kernel module",
}
_EXCLUSIVE, _PROHIBITED = 3, 2  # of nvmlComputeMode_t
_UNKNOWN = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE
_MOST = 32  # processes that are asked for


@dataclass(frozen=True)
class Card:
    name: str
    cuda: tuple[int, int]  # the newest CUDA that its driver runs
    compute: tuple[int, int]  # compute capability
    total_bytes: int
    free_bytes: int | None  # None: not known, or what the system leaves
    shared: bool  # its memory is the system's own
    others: tuple[str, ...] = ()  # other processes that compute there: `python3 (1234)`
    closed: str = ""  # why it takes no other process

    @property
    def architecture(self) -> str:
        """`sm_87`."""
        return "sm_{}{}".format(*self.compute)


@dataclass(frozen=True)
class Graphics:
    """The first card; or why there is none, empty where there is no driver either."""

    card: Card | None = None
    missing: str = ""


NONE = Graphics()


def inspect(load: Load = ctypes.CDLL) -> Graphics:
    """Of a machine without the driver's library this costs nothing."""
    try:
        driver = load(_DRIVER)
    except OSError:
        return NONE
    if failed := driver.cuInit(0):
        return Graphics(missing=_WHY.get(failed, f"the driver does not start: CUDA error {failed}"))
    if not _integer(driver.cuDeviceGetCount):
        return Graphics(missing=_WHY[_NO_DEVICE])
    device = ctypes.c_int(_integer(driver.cuDeviceGet, 0))
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    total = ctypes.c_size_t(0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    version = _integer(driver.cuDriverGetVersion)
    shared, *compute = (_integer(driver.cuDeviceGetAttribute, what, device) for what in (_INTEGRATED, _MAJOR, _MINOR))
    free, others, closed = (None, (), "") if shared else _use(load)
    found = Card(
        name=name.value.decode(errors="replace"),
        cuda=(version // 1000, version % 1000 // 10),
        compute=(compute[0], compute[1]),
        total_bytes=total.value,
        free_bytes=free,
        shared=bool(shared),
        others=others,
        closed=closed,
    )
    return Graphics(found)


class MemoryInfo(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t of version 2 and 3 of the call."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@contextlib.contextmanager
def management(load: Load = ctypes.CDLL) -> Iterator[tuple[Any, Any] | None]:
    """NVML and the handle of the first card; None where there is none."""
    try:
        nvml = load(_NVML)
    except OSError:
        yield None
        return
    if nvml.nvmlInit_v2():
        yield None
        return
    try:
        handle = ctypes.c_void_p()
        yield None if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) else (nvml, handle)
    finally:
        nvml.nvmlShutdown()


def processes(nvml: Any, handle: Any) -> dict[int, int] | None:
    """Process -> bytes on the card, of all that compute there, 0 where those are not told; None where none are."""
    found, count = (ProcessInfo * _MOST)(), ctypes.c_uint(_MOST)
    call = getattr(nvml, "nvmlDeviceGetComputeRunningProcesses_v3", None)
    if call is None or call(handle, ctypes.byref(count), found):
        return None
    return {one.pid: 0 if one.used == _UNKNOWN else one.used for one in found[: count.value]}


def _use(load: Load) -> tuple[int | None, tuple[str, ...], str]:
    """Free bytes, other processes, and why no more are taken."""
    with management(load) as known:
        if known is None:
            return None, (), ""
        nvml, handle = known
        info, mode = MemoryInfo(), ctypes.c_int(0)
        free = None if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(info)) else int(info.free)
        nvml.nvmlDeviceGetComputeMode(handle, ctypes.byref(mode))
        others = tuple(f"{_called(pid)} ({pid})" for pid in processes(nvml, handle) or () if pid != os.getpid())
    if mode.value == _PROHIBITED:
        return free, others, "its compute mode is Prohibited: nvidia-smi -c DEFAULT"
    if mode.value == _EXCLUSIVE and others:
        return free, others, f"its compute mode is Exclusive_Process, and {', '.join(others)} has it"
    return free, others, ""


def _called(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "process"


def _integer(call: Any, *given: Any) -> int:
    """What a call of the driver writes to its first argument; 0 where it fails."""
    value = ctypes.c_int(0)
    return 0 if call(ctypes.byref(value), *given) else value.value
