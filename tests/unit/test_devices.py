from __future__ import annotations

import ctypes
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from edge import devices, engines, plugins
from edge.devices import detect, host, probe, profile, profiles
from edge.devices.host import ISA
from edge.engines import EngineInfo
from edge.errors import EngineError, UsageError
from edge.recipes import RECIPES


def nobody() -> None:
    """No engine lends its matmuls."""


FOLDER = Path(devices.__file__).parent
FILES = sorted(file for file in FOLDER.glob("*.json") if file.name != devices.SCHEMA)
SCHEMA = json.loads((FOLDER / devices.SCHEMA).read_text())
# The ids of the first list: they stay valid.
BEFORE = ["rpi4", "rpi5", "jetson_orin_nano", "jetson_orin_nx", "jetson_agx_orin", "pixel_8", "sd_778g", "sd_888"]
BEFORE += ["sd_8gen2", "sd_8gen3", "sd_8elite", "dimensity_9300", "apple_a15", "apple_a16", "apple_a17pro"]
BEFORE += ["apple_a18pro", "apple_m1", "apple_m2", "generic_arm", "generic_x86"]
SINCE = ["rpi_zero_2w", "jetson_orin_nano_super", "jetson_xavier_nx", "linux-x86", "linux-arm64", "macos"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_profile_is_what_the_schema_says(file: Path) -> None:
    data = json.loads(file.read_text())
    jsonschema.validate(data, SCHEMA)
    assert data["id"] == file.stem
    for role, names in data["engines"].items():
        assert set(names) <= {*plugins.names("runtimes")} - {"null"}, f"{role}: an engine that is not in runtimes/"
    figures = data["figures"]
    assert figures["usable_memory"]["value"] <= figures["memory"]["value"]
    assert set(figures["isa"]["value"]) <= set(ISA)
    for figure in (*figures.values(), *figures["bandwidth_measured"]):
        for one in figure if isinstance(figure, list) else [figure]:
            assert one["source"].strip(), "each figure tells where it is from"
            if one["source"].startswith(("general knowledge", "computed")):
                assert one["estimate"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["figures"]["memory"].pop("source"),
        lambda data: data["figures"].pop("int8"),
        lambda data: data["figures"]["int8"].update(unit="GFLOPS"),
        lambda data: data["figures"]["memory"].update(value=None),
        lambda data: data["figures"]["bandwidth_theoretical"].update(value=-1),
        lambda data: data["engines"].update(vision=[]),
        lambda data: data.update(extra=1),
    ],
)
def test_the_schema_refuses(change: Callable[[Any], object]) -> None:
    data = json.loads(FILES[0].read_text())
    change(data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)


def test_the_profiles_are_what_the_files_say() -> None:
    assert sorted(p.id for p in profiles()) == [file.stem for file in FILES]
    for name in (*BEFORE, *SINCE):
        found = profile(name)
        assert name in (found.id, *found.aliases)
        assert found.recipe in RECIPES
        assert found.threads >= 1
    names = [name for p in profiles() for name in (p.id, *p.aliases)]
    assert len(names) == len(set(names))


def test_facts_that_are_known() -> None:
    pi = profile("rpi5")
    assert (pi.name, pi.threads, pi.isa, pi.kind) == ("Raspberry Pi 5", 4, ("neon", "dotprod", "fp16"), "board")
    assert pi.estimates == ("memory_bytes",), "a Pi 5 comes with 2 to 16 GB"
    assert pi.known("bandwidth_measured") == devices.Figure(
        14.88, "GB/s", "sbc-bench 8-NK: NEON LDP load, 1 thread", False
    )
    assert pi.known("gpu_fp16") is None
    assert profile("rpi4").isa == ("neon",), "no dot product: quantised kernels are slow there"
    assert profile("jetson_orin_nano").memory_bytes == int(5.2 * 2**30)
    assert profile("rpi_zero_2w").recipe == "onnx-w8a8-w4", "one engine's library, in 427 MB"
    assert profile("linux-x86").recipe == "tflite-w8a8-w4", "the fastest that pip alone installs (BENCHMARKS.md)"
    assert profile("sd_888").to_json()["figures"]["bandwidth_theoretical"] == [
        {"value": 51.2, "unit": "GB/s", "source": "nanoreview", "estimate": False}
    ]


def test_an_unknown_device() -> None:
    with pytest.raises(UsageError, match="no device 'toaster'") as caught:
        profile("toaster")
    assert "rpi5" in str(caught.value.hint)
    with pytest.raises(UsageError) as caught:
        profile("RPI_5")
    assert all(word in str(caught.value.hint) for word in ("rpi4, rpi5", "edge devices"))


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "rpi5"),
        ("Raspberry Pi 500 Rev 1.0", "rpi5"),
        ("Raspberry Pi 4 Model B Rev 1.4", "rpi4"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "rpi_zero_2w"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "jetson_orin_nano"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson_orin_nano_super"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "jetson_agx_orin"),
        ("Qualcomm Technologies, Inc SM8350", "sd_888"),
        ("Apple M1", "apple_m1"),
        ("Apple M1 Pro", "linux-x86"),
        ("Raspberry Pi 3 Model B", "linux-x86"),
        ("", "linux-x86"),
    ],
)
def test_what_a_machine_calls_itself(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    assert devices.recognise(name).id == device


def test_a_board_is_recognised_by_its_device_tree(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, "proc/cpuinfo", "Features\t: fp asimd asimdhp asimddp\n")
    put(root, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    monkeypatch.setattr(host, "inspect", lambda: host.linux(root, range(4)))
    here = detect()
    assert (here.id, here.recognised, here.name) == ("this", "rpi5", "Raspberry Pi 5 Model B Rev 1.0")
    assert (here.memory_bytes, here.threads, here.isa) == (4096 * 1024, 4, ("neon", "dotprod", "fp16"))
    read = {name: here.figures[name][0].value for name in ("usable_memory", "cores", "isa")}
    assert read == {"usable_memory": 0.0, "cores": 4, "isa": ["neon", "dotprod", "fp16"]}
    assert (here.engines, here.figures) == (
        profile("rpi5").engines,
        {**profile("rpi5").figures, **{n: here.figures[n] for n in read}},
    )
    assert devices.measured(here, nobody) is here, "what is known is not measured"


def test_a_phone_is_recognised_by_its_chip(root: Path) -> None:
    put(root, "proc/cpuinfo", "Features\t: fp asimd\nHardware\t: Qualcomm Technologies, Inc SM8550\n")
    assert devices.recognise(host.linux(root, range(8)).name).id == "sd_8gen2"
    put(root, "proc/cpuinfo", "Features\t: fp asimd\n")
    put(root, "sys/devices/soc0/machine", "SM8650\n")
    assert devices.recognise(host.linux(root, range(8)).name).id == "sd_8gen3"


@pytest.mark.parametrize(
    ("maker", "model", "device"),
    [("QTI", "SM8550", "sd_8gen2"), ("Google", "Tensor G3", "pixel_8"), ("Mediatek", "MT6989", "dimensity_9300")],
)
def test_android_tells_the_chip_that_its_device_tree_hides(root: Path, maker: str, model: str, device: str) -> None:
    told = {b"ro.soc.manufacturer": maker, b"ro.soc.model": model}

    def get(name: bytes, value: Any) -> int:
        value.value = told[name].encode()
        return len(value.value)

    put(root, "proc/device-tree/model", "Some Codename MTP\0")
    chip = host._android_chip(SimpleNamespace(__system_property_get=get))
    assert devices.recognise(host.linux(root, range(8), chip).name).id == device
    assert host._android_chip(object()) == "", "another system"


@pytest.mark.parametrize(
    ("products", "reached", "int8"),
    [((), None, 2500), ((1.6e12, 30e9, "x"), (34.5, "GB/s", False), 2000)],
    ids=["numpy", "engine"],
)
def test_an_unknown_machine_is_measured(
    products: tuple[Any, ...], reached: object, int8: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def measure(threads: int, memory: int, lender: None) -> probe.Speed:
        asked.append((threads, memory))
        return probe.Speed(42.5e9, 0.5e12, *products)

    monkeypatch.setattr(probe, "measure", measure)
    monkeypatch.setattr(host, "inspect", lambda: host.Machine("x", 8 << 30, 2, ("avx2", "avx512_vnni")))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    here = profile("this")
    assert (here.recognised, asked) == ("linux-x86", []), "looking at it measures nothing"
    assert set(here.figures) == {"usable_memory", "cores", "isa"}, "nothing of it is a guess"
    found = devices.measured(here, nobody)
    assert asked == [(2, 8 << 30)]
    names = ("bandwidth_measured", "bandwidth_reached", "fp32", "int8")
    values = [(f.value, f.unit, f.estimate) if (f := found.known(name)) else None for name in names]
    assert values == [(42.5, "GB/s", False), reached, (625, "GFLOPS", True), (int8, "GOPS", True)]
    assert devices.measured(profile("linux-x86"), nobody) is profile("linux-x86"), "another machine cannot be measured"


@pytest.mark.parametrize(
    ("isa", "factor"),
    [((), 2), (("avx2",), 2), (("neon", "dotprod"), 4), (("dotprod", "i8mm"), 8), (("avx2", "amx", "avx512_vnni"), 16)],
)
def test_int8_to_fp32(isa: tuple[str, ...], factor: int) -> None:
    assert probe.int8_factor(isa)[0] == factor


def test_measuring_takes_little_memory_and_counts_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(probe, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(probe, "SIDE", 8)
    found = probe.measure(2, 1 << 22)  # each second one second: the bytes and the operations themselves
    assert found == probe.Speed(2 * (1 << 18), 2 * 8**3)
    assert probe.measure(1, 0).bandwidth == 1 << 16


def test_an_engine_lends_its_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(probe, "perf_counter", lambda: float(next(clock)))
    lender = probe.Lender("here", lambda threads, memory: probe.Matmuls(threads, memory, 3.0))
    found = probe.measure(2, 1 << 20, lender)
    assert (found.decoding, found.int8, found.fp32, found.of) == (2, 1 << 20, 3.0, "here")


def test_the_engine_that_lends_is_the_first_whose_library_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(name: str, matmuls: str | None = "its own", installed: bool = True) -> EngineInfo:
        return EngineInfo(name, (), name, installed, "1", None, matmuls=matmuls)

    def load(name: str) -> SimpleNamespace:
        if name == "gone":
            raise EngineError(name)
        return SimpleNamespace(matmuls=name.upper)

    none = (engine("absent", installed=False), engine("gone"), engine("silent", None))
    monkeypatch.setattr(engines, "module", load)
    monkeypatch.setattr(engines, "installed_engines", lambda: none)
    assert engines.matmul_lender() is None
    monkeypatch.setattr(engines, "installed_engines", lambda: (*none, engine("here"), engine("later")))
    found = engines.matmul_lender()
    assert found and (found.name, found.matmuls.__self__) == ("here", "here")  # type: ignore[attr-defined]


def test_this_machine() -> None:
    here = detect()
    assert here.id == "this"
    assert here.name
    assert here.memory_bytes > 2**20
    assert here.threads >= 1
    assert here.estimates == ()
    assert here.engines == profile(str(here.recognised)).engines


@pytest.mark.parametrize("name", ["macos", *(name for name in BEFORE if name.startswith("apple_"))])
def test_apple_s_devices_take_core_ml_and_prefer_its_engine(name: str) -> None:
    found = profile(name)
    assert {target.format for target in RECIPES[found.recipe].targets.values()} == {"coreml"}
    assert {names[0] for names in found.engines.values()} == {"coreml"}


def test_a_mac_prefers_what_a_mac_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(host, "inspect", lambda: host.Machine("M9", 8 << 30, 4, ("neon",)))
    assert detect().engines == profile("macos").engines == profile("apple_m1").engines
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
    found = host.linux(root, range(4))
    assert found == host.Machine("Raspberry Pi 5 Model B Rev 1.0", 4096 * 1024, 4, ("neon", "dotprod", "fp16"))


def test_an_x86_whose_cores_have_two_threads(root: Path) -> None:
    put(root, "proc/cpuinfo", "model name\t: Fast CPU\nflags\t\t: sse avx2 avx512f avx512_vnni amx_tile amx_int8\n")
    for cpu in range(8):
        put(root, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    found = host.linux(root, range(8))
    assert (found.name, found.cores, found.isa) == ("Fast CPU", 4, ("avx2", "avx512", "avx512_vnni", "amx"))
    assert host.linux(root, [0, 4]).cores == 1, "both are one core"
    assert host.linux(root, [0, 1, 4]).cores == 2


def test_slow_cores_beside_fast_ones_are_left_out(root: Path) -> None:
    for cpu, speed in enumerate([300] * 3 + [760] * 4 + [1024]):
        put(root, f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", str(speed))
    assert host.linux(root, range(8)).cores == 5
    assert host.linux(root, range(3)).cores == 3, "when there are no others, they are the fast ones"


def test_a_control_group_leaves_less(root: Path) -> None:
    put(root, "proc/self/cgroup", "1:name=systemd:/x\n0::/jobs/mine\n")
    put(root, "sys/fs/cgroup/jobs/memory.max", "2000000")
    put(root, "sys/fs/cgroup/jobs/memory.current", "1500000")
    put(root, "sys/fs/cgroup/jobs/memory.stat", "anon 5\nfile 9\ninactive_file 400000\nactive_file 3\n")
    put(root, "sys/fs/cgroup/jobs/mine/memory.max", "max")
    put(root, "sys/fs/cgroup/jobs/mine/cpu.max", "150000 100000")
    put(root, "sys/fs/cgroup/cpu.max", "max 100000")
    found = host.linux(root, range(8))
    assert found.memory_bytes == 2000000 - (1500000 - 400000)
    assert found.cores == 2, "a processor and a half"


def test_a_control_group_of_version_1_leaves_less(root: Path) -> None:
    put(root, "proc/self/cgroup", "5:cpu,cpuacct:/jobs\n4:memory:/jobs/mine\n0::/\n")
    memory = "sys/fs/cgroup/memory"
    put(root, f"{memory}/memory.limit_in_bytes", "9223372036854771712")
    put(root, f"{memory}/jobs/memory.limit_in_bytes", "2000000")
    put(root, f"{memory}/jobs/memory.usage_in_bytes", "1500000")
    put(root, f"{memory}/jobs/memory.stat", "inactive_file 7\ntotal_inactive_file 400000\n")
    put(root, f"{memory}/jobs/mine/memory.limit_in_bytes", "1900000")
    put(root, f"{memory}/jobs/mine/memory.usage_in_bytes", "100000")
    assert host.linux(root, [0]).memory_bytes == 2000000 - (1500000 - 400000)


def test_a_limit_above_what_is_free_changes_nothing(root: Path) -> None:
    put(root, "sys/fs/cgroup/memory.max", str(1 << 40))
    assert host.linux(root, [0]).memory_bytes == 4096 * 1024


@pytest.mark.parametrize(
    ("name", "isa", "expected"),
    [
        ("neon", ("neon", "dotprod"), ("neon",)),
        ("fp16", ("neon",), ("neon", "dotprod", "fp16")),
        ("avx512", ("avx2", "avx512_vnni"), ("avx2", "avx_vnni", "avx512")),
    ],
)
def test_the_instruction_sets_up_to_one(name: str, isa: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert host.up_to(name, isa) == expected


def test_an_instruction_set_of_another_kind_of_processor() -> None:
    with pytest.raises(UsageError, match="no instruction set 'neon' on this kind of processor") as told:
        host.up_to("neon", ("avx2",))
    assert "avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx" in str(told.value.hint)
    with pytest.raises(UsageError, match="'avx2'") as told:
        host.up_to("avx2", ())
    assert told.value.hint and "avx2" not in told.value.hint


def test_every_instruction_set_has_its_place() -> None:
    assert {name for names in host.GENERATIONS for name in names} == set(host.ISA)


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    found = host.linux(tmp_path, [0, 1])
    assert found == host.Machine(platform.machine(), 4 << 30, 2, ())


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches/edge-vlm"),
        ("linux", {"HOME": "/home/ada"}, "/home/ada/.cache/edge-vlm"),
        ("darwin", {"HOME": "/Users/ada"}, "/Users/ada/.cache/edge-vlm"),
        ("win32", {"LOCALAPPDATA": "/local", "XDG_CACHE_HOME": "/caches"}, "/local/edge-vlm"),
        ("win32", {"HOME": "/home/ada"}, "/home/ada/AppData/Local/edge-vlm"),
    ],
)
def test_the_cache_folder(
    system: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    assert host.cache_dir() == Path(expected)


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
    assert host.darwin(lambda key: values.get(key, 0), "arm") == host.Machine("arm", 16 << 30, 4, ("neon", "dotprod"))
    assert host.darwin(lambda key: 0, "old").cores == 1


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
    found = host.windows(Kernel32(1), "cpu", 6)  # type: ignore[arg-type]
    assert found == host.Machine("cpu", 5 << 30, 6, ("avx2",))
    assert host.windows(Kernel32(0), "cpu", 6).memory_bytes == 4 << 30  # type: ignore[arg-type]


@pytest.mark.parametrize("system", ["linux", "darwin", "win32", "plan9"])
def test_each_system_is_asked_its_own_way(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def note(name: str) -> Callable[..., host.Machine]:
        return lambda *arguments: (asked.append(name), host.Machine(name, 1, 1, ()))[1]

    for name, function in {"linux": "linux", "darwin": "darwin", "win32": "windows"}.items():
        monkeypatch.setattr(host, function, note(name))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(host, "_sysctl_text", lambda name: "")
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: Kernel32(1), raising=False)
    found = host.inspect()
    assert asked == ([system] if system != "plan9" else [])
    assert found.cores >= 1


def test_sysctl_takes_what_the_system_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def sysctlbyname(self, name: bytes, value: Any, size: Any, new: None, length: int) -> int:
            value._obj.value = 12
            return 0 if name == b"hw.memsize" else -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc())
    assert host._sysctl("hw.memsize") == 12
    assert host._sysctl("hw.nothing") == 0


def test_sysctl_s_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def sysctlbyname(self, name: bytes, value: Any, size: Any, new: None, length: int) -> int:
            value.value = b"Apple M1"
            return 0 if name == b"machdep.cpu.brand_string" else -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc())
    assert host._sysctl_text("machdep.cpu.brand_string") == "Apple M1"
    assert host._sysctl_text("hw.nothing") == ""
