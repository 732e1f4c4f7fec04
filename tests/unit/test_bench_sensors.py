"""What the system tells, from files that lie as on the devices; and what is made of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.bench.monitor import INTERVAL, Monitor
from edge.bench.sensors import Sensors

PROCESS = 77
TICKS = os.sysconf("SC_CLK_TCK")


def put(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    asked = [sensors.energy, sensors.power, sensors.temperature, sensors.clock, sensors.throttled, sensors.swapped]
    assert [read() for read in asked] == [None] * 6
    assert sensors.busy() is sensors.busy_of(PROCESS) is sensors.swap_of(PROCESS) is None


def test_the_packages_energy_and_not_its_parts_again(tmp_path: Path) -> None:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:2": "psys", "intel-rapl:0:0": "core"}
    for zone, name in zones.items():
        limits = {"name": name, "energy_uj": 1_000_000, "max_energy_range_uj": 5_000_000}
        put(tmp_path, {f"sys/class/powercap/{zone}/{key}": value for key, value in limits.items()})
    sensors = Sensors(tmp_path)
    assert sensors.energy() == 2.0
    put(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 4_500_000})
    assert sensors.energy() == 5.5
    put(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 250_000})  # past its end, and anew
    assert sensors.energy() == 5.25 + 1.0
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert sensors.energy() is None


def test_jetsons_whole_module_and_not_one_rail(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon1"
    rails = {"in1_label": "VDD_CPU_GPU_CV", "in1_input": 5000, "curr1_input": 100}
    whole = {"in2_label": "VDD_IN", "in2_input": 4900, "curr2_input": 1500}
    put(tmp_path, {f"{chip}/{name}": value for name, value in {**rails, **whole}.items()})
    put(tmp_path, {"sys/class/hwmon/hwmon0/power1_input": 3_000_000})
    assert Sensors(tmp_path).power() == pytest.approx(7.35)
    (tmp_path / chip / "curr2_input").unlink()
    assert Sensors(tmp_path).power() == 3.0


def test_heat_and_clocks(tmp_path: Path) -> None:
    put(tmp_path, {"sys/class/thermal/thermal_zone0/temp": 41500, "sys/class/thermal/thermal_zone1/temp": 63000})
    put(tmp_path, {"sys/class/hwmon/hwmon0/temp1_input": 99000, "proc/cpuinfo": "cpu MHz\t\t: 1200.5\ncpu MHz : 900"})
    assert (Sensors(tmp_path).temperature(), Sensors(tmp_path).clock()) == (63.0, 1200.5)
    cpus = "sys/devices/system/cpu"
    put(tmp_path, {f"{cpus}/cpu{n}/cpufreq/scaling_cur_freq": 1_500_000 + 900_000 * n for n in (0, 1)})
    assert Sensors(tmp_path).clock() == 2400.0


@pytest.mark.parametrize(
    ("said", "flags"), [("0", 0), ("50005", 2), ("0x4", 1), ("f0000", 0), ("xx", None), ("", None)]
)
def test_a_raspberry_pi_says_whether_it_is_held_back_now(tmp_path: Path, said: str, flags: int | None) -> None:
    put(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": said})
    assert Sensors(tmp_path).throttled() == flags


class Machine:
    """A faked machine whose clock goes on when it is told to; power in watts, from a counter."""

    def __init__(self, root: Path) -> None:
        self.root, self.now, self.joules = root, 0, 0.0
        put(root, {"sys/class/powercap/intel-rapl:0/name": "package-0"})
        self.set(mhz=2400.0, celsius=50.0)
        self.load(0.0, 0.0)

    def set(self, mhz: float, celsius: float) -> None:
        put(self.root, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": round(mhz * 1000)})
        put(self.root, {"sys/class/thermal/thermal_zone0/temp": round(celsius * 1000)})

    def load(self, all_seconds: float, own_seconds: float) -> None:
        put(self.root, {"proc/stat": f"cpu {round(all_seconds * TICKS)} 0 0 900 5 0 0 0 0 0"})
        fields = " ".join(["0"] * 11 + [str(round(own_seconds * TICKS)), "0"])
        put(self.root, {f"proc/{PROCESS}/stat": f"{PROCESS} (a b) S) {fields}"})

    def watch(self) -> Monitor:
        put(self.root, {"sys/class/powercap/intel-rapl:0/energy_uj": 0})
        return Monitor(Sensors(self.root), PROCESS, lambda: self.now)

    def go(self, watch: Monitor, seconds: float, watts: float = 0.0) -> None:
        for _ in range(round(seconds / INTERVAL)):
            self.now += round(1e9 * INTERVAL)
            self.joules += watts * INTERVAL
            put(self.root, {"sys/class/powercap/intel-rapl:0/energy_uj": round(1e6 * self.joules)})
            watch.look()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def seconds(*spans: tuple[float, float]) -> list[tuple[int, int]]:
    return [(round(1e9 * start), round(1e9 * end)) for start, end in spans]


def test_energy_is_that_of_the_spans(machine: Machine) -> None:
    watch = machine.watch()
    watch.look()
    machine.go(watch, 1.0, watts=2.0)
    machine.go(watch, 1.0, watts=10.0)
    assert watch.energy(seconds((1.0, 2.0))) == pytest.approx(10.0)
    assert watch.energy(seconds((0.0, 1.0), (1.0, 2.0))) == pytest.approx(6.0)  # of one, on average
    assert watch.energy(seconds((0.55, 1.45))) == pytest.approx(0.45 * 2 + 0.45 * 10)  # between the looks
    assert watch.energy(seconds((1.0, 1.2))) is None  # too short to tell
    assert watch.energy(seconds((5.0, 7.0))) is None  # nobody looked


def test_energy_from_watts(tmp_path: Path) -> None:
    put(tmp_path, {"sys/class/hwmon/hwmon0/power1_average": 4_000_000})
    now = [0]
    watch = Monitor(Sensors(tmp_path), PROCESS, lambda: now[0])
    for _ in range(11):
        watch.look()
        now[0] += 100_000_000
    assert watch.energy([(0, 1_000_000_000)]) == pytest.approx(4.0)


def test_a_clock_that_falls_is_throttling(machine: Machine) -> None:
    watch = machine.watch()
    machine.go(watch, 2.0)
    assert watch.warnings(seconds((0.0, 2.0))) == []
    machine.set(mhz=1500.0, celsius=84.6)
    machine.go(watch, 2.0)
    assert watch.warnings(seconds((0.0, 4.0))) == ["throttled: the clock fell from 2400 to 1500 MHz at 85 °C"]
    assert watch.warnings(seconds((2.05, 4.0))) == []  # while it idled it was slow already: that is no fall
    assert watch.clock(seconds((0.0, 1.9))) == 2400.0
    assert watch.temperature(seconds((0.0, 4.0))) == 84.6


def test_the_processors_own_word_for_throttling(machine: Machine) -> None:
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    put(machine.root, {counter: 3})
    watch = machine.watch()
    assert watch.warnings([]) == []
    put(machine.root, {counter: 4})
    assert watch.warnings([]) == ["throttled: the processor says that it was slowed down"]


def test_swapping(machine: Machine) -> None:
    put(machine.root, {"proc/vmstat": "nr_free 3\npswpin 10\npswpout 5", f"proc/{PROCESS}/status": "VmSwap:\t 2000 kB"})
    watch = machine.watch()
    machine.go(watch, 1.0)
    assert watch.warnings([]) == []  # nothing moved: it lay there before
    put(machine.root, {"proc/vmstat": "nr_free 3\npswpin 1010\npswpout 505"})
    assert watch.warnings([]) == ["swapping: 2 MB of the process lay in swap, 1,500 pages were moved"]


def test_other_load(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    watch = machine.watch()
    watch.look()
    machine.load(2.0, 2.0)
    machine.go(watch, 1.0)
    assert watch.warnings([]) == []  # both cores were busy, with us
    machine.load(5.1, 3.5)
    machine.go(watch, 1.0)
    assert watch.warnings([]) == ["other load: other processes took 0.8 cores"]


def test_a_watch_looks_by_itself(tmp_path: Path) -> None:
    with Monitor(Sensors(tmp_path), PROCESS) as watch:
        while len(watch.looks) < 3:
            pass
    count = len(watch.looks)
    assert watch.looks[-1].at > watch.looks[0].at
    assert len(watch.looks) == count and watch.looks[0].mhz is None
