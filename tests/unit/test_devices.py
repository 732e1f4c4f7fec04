from __future__ import annotations

import ctypes
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge import devices, machine
from edge.devices import detect, profile, profiles
from edge.errors import UsageError
from edge.machine import ISA

ENGINES = {"onnxruntime", "llamacpp", "executorch", "coreml", "litert"}


def test_the_profiles_are_what_the_design_says() -> None:
    ids = [p.id for p in profiles()]
    assert len(ids) == len(set(ids))
    assert {"rpi4", "rpi5", "jetson_orin_nano", "jetson_agx_orin", "generic_x86", "generic_arm"} <= set(ids)
    for p in profiles():
        assert p.memory_bytes >= 2**30
        assert p.threads >= 1
        assert set(p.isa) <= set(ISA)
        assert p.engines.keys() == {"vision", "decoder"}
        assert {name for names in p.engines.values() for name in names} <= ENGINES
        assert p.recipe == "onnx-w8a8-gguf-q4_0"
        assert set(p.estimates) <= {"memory_bytes", "threads", "isa"}


def test_facts_that_are_known() -> None:
    pi = profile("rpi5")
    assert (pi.name, pi.threads, pi.isa) == ("Raspberry Pi 5", 4, ("neon", "dotprod", "fp16"))
    assert pi.estimates == ("memory_bytes",), "a Pi 5 comes with 2 to 16 GB"
    assert profile("rpi4").isa == ("neon",), "no dot product: quantised kernels are slow there"


def test_an_unknown_device() -> None:
    with pytest.raises(UsageError, match="no device 'toaster'") as caught:
        profile("toaster")
    assert "rpi5" in str(caught.value.hint)


def test_this_machine() -> None:
    here = detect()
    assert here.id == "this"
    assert here.name
    assert here.memory_bytes > 2**20
    assert here.threads >= 1
    assert here.estimates == ()
    assert (
        here.engines == profile("generic_arm" if platform.machine() in ("aarch64", "arm64") else "generic_x86").engines
    )


def test_a_mac_prefers_what_a_mac_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(devices.machine, "inspect", lambda: machine.Machine("M9", 8 << 30, 4, ("neon",)))
    assert detect().engines == profile("apple_m1").engines
    assert (detect().name, detect().threads) == ("M9", 4)


# Linux, from files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "proc/meminfo", "MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable:    4096 kB\n")
    return tmp_path


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_a_raspberry_pi(root: Path) -> None:
    put(root, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd evtstrm asimdhp asimddp\n\nprocessor\t: 1\n")
    put(root, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    found = machine.linux(root, range(4))
    assert found == machine.Machine("Raspberry Pi 5 Model B Rev 1.0", 4096 * 1024, 4, ("neon", "dotprod", "fp16"))


def test_an_x86_whose_cores_have_two_threads(root: Path) -> None:
    put(root, "proc/cpuinfo", "model name\t: Fast CPU\nflags\t\t: sse avx2 avx512f avx512_vnni amx_tile amx_int8\n")
    for cpu in range(8):
        put(root, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    found = machine.linux(root, range(8))
    assert (found.name, found.cores, found.isa) == ("Fast CPU", 4, ("avx2", "avx512", "avx512_vnni", "amx"))
    assert machine.linux(root, [0, 4]).cores == 1, "both are one core"
    assert machine.linux(root, [0, 1, 4]).cores == 2


def test_slow_cores_beside_fast_ones_are_left_out(root: Path) -> None:
    for cpu, speed in enumerate([300] * 3 + [760] * 4 + [1024]):
        put(root, f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", str(speed))
    assert machine.linux(root, range(8)).cores == 5
    assert machine.linux(root, range(3)).cores == 3, "when there are no others, they are the fast ones"


def test_a_control_group_leaves_less(root: Path) -> None:
    put(root, "proc/self/cgroup", "1:name=systemd:/x\n0::/jobs/mine\n")
    put(root, "sys/fs/cgroup/jobs/memory.max", "2000000")
    put(root, "sys/fs/cgroup/jobs/memory.current", "1500000")
    put(root, "sys/fs/cgroup/jobs/memory.stat", "anon 5\nfile 9\ninactive_file 400000\nactive_file 3\n")
    put(root, "sys/fs/cgroup/jobs/mine/memory.max", "max")
    put(root, "sys/fs/cgroup/jobs/mine/cpu.max", "150000 100000")
    put(root, "sys/fs/cgroup/cpu.max", "max 100000")
    found = machine.linux(root, range(8))
    assert found.memory_bytes == 2000000 - (1500000 - 400000)
    assert found.cores == 2, "a processor and a half"


def test_a_limit_above_what_is_free_changes_nothing(root: Path) -> None:
    put(root, "sys/fs/cgroup/memory.max", str(1 << 40))
    assert machine.linux(root, [0]).memory_bytes == 4096 * 1024


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    found = machine.linux(tmp_path, [0, 1])
    assert found == machine.Machine(platform.machine(), 4 << 30, 2, ())


# elsewhere


def test_a_mac() -> None:
    values = {
        "hw.perflevel0.physicalcpu": 4,
        "hw.physicalcpu": 8,
        "hw.memsize": 16 << 30,
        "hw.optional.AdvSIMD": 1,
        "hw.optional.arm.FEAT_DotProd": 1,
        "hw.optional.arm.FEAT_I8MM": 0,
    }
    assert machine.darwin(lambda key: values.get(key, 0), "arm") == machine.Machine(
        "arm", 16 << 30, 4, ("neon", "dotprod")
    )
    assert machine.darwin(lambda key: 0, "old").cores == 1


class Kernel32:
    def __init__(self, known: int) -> None:
        self.known = known

    def GlobalMemoryStatusEx(self, pointer: Any) -> int:
        status = pointer._obj
        assert status.size == ctypes.sizeof(status) == 64
        status.bytes[0], status.bytes[1] = 8 << 30, 5 << 30
        return self.known

    def IsProcessorFeaturePresent(self, feature: int) -> int:
        return feature == 40


def test_windows() -> None:
    found = machine.windows(Kernel32(1), "cpu", 6)  # type: ignore[arg-type]
    assert found == machine.Machine("cpu", 5 << 30, 6, ("avx2",))
    assert machine.windows(Kernel32(0), "cpu", 6).memory_bytes == 4 << 30  # type: ignore[arg-type]


@pytest.mark.parametrize("system", ["linux", "darwin", "win32", "plan9"])
def test_each_system_is_asked_its_own_way(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def note(name: str) -> Callable[..., machine.Machine]:
        return lambda *arguments: (asked.append(name), machine.Machine(name, 1, 1, ()))[1]

    for name, function in {"linux": "linux", "darwin": "darwin", "win32": "windows"}.items():
        monkeypatch.setattr(machine, function, note(name))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: Kernel32(1), raising=False)
    found = machine.inspect()
    assert asked == ([system] if system != "plan9" else [])
    assert found.cores >= 1


def test_sysctl_takes_what_the_system_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def sysctlbyname(self, name: bytes, value: Any, size: Any, new: None, length: int) -> int:
            value._obj.value = 12
            return 0 if name == b"hw.memsize" else -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc())
    assert machine._sysctl("hw.memsize") == 12
    assert machine._sysctl("hw.nothing") == 0


def test_the_data_is_plain() -> None:
    data = json.loads(Path(devices.__file__).with_name("devices.json").read_text())
    assert [entry["id"] for entry in data] == [p.id for p in profiles()]
