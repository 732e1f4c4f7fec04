"""What is read of a card while it computes: NVML by a stand-in, a Jetson's files as they lie there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from card_fakes import CARD, Management, loading, with_card
from test_bench_sensors import PROCESS, put, seconds

from edge.bench import runner
from edge.bench.card_sensors import CardSensors
from edge.bench.monitor import INTERVAL, Monitor
from edge.bench.request import Request, sweep
from edge.bench.sensors import Sensors
from edge.devices import detect

# As on an Orin (L4T 36): devfreq of the card, the over-current counters of soctherm.
ORIN = {
    "sys/class/devfreq/17000000.gpu/cur_freq": 918_000_000,
    "sys/class/devfreq/13e10000.host1x/cur_freq": 204_000_000,
    "sys/class/hwmon/hwmon2/name": "soctherm_oc",
    "sys/class/hwmon/hwmon2/oc1_event_cnt": 2,
    "sys/class/hwmon/hwmon2/oc3_event_cnt": 1,
}


def test_without_a_card_nothing_is_told(tmp_path: Path) -> None:
    sensors = CardSensors(tmp_path, loading())
    asked = [sensors.power, sensors.temperature, sensors.clock, sensors.throttled]
    assert [read() for read in asked] == [None] * 4
    assert sensors.memory(PROCESS) is None
    sensors.close()


def test_what_nvml_tells(tmp_path: Path) -> None:
    known = Management({PROCESS: 700_000_000, 5: 2**64 - 1})
    sensors = CardSensors(tmp_path, loading(management=known))
    assert (sensors.memory(PROCESS), sensors.memory(5), sensors.memory(6)) == (700_000_000, None, None)
    assert (sensors.power(), sensors.temperature(), sensors.clock(), sensors.throttled()) == (61.5, 58.0, 1410.0, 0)
    known.reasons = 0x1 | 0x20 | 0x100  # idle, heat, the display's own clock
    assert sensors.throttled() == 0x20
    assert known.shut == 0
    sensors.close()
    assert known.shut == 1


def test_what_nvml_leaves_out(tmp_path: Path) -> None:
    known = Management({PROCESS: 1}, off=("power", "temperature", "clock", "reasons", "processes"))
    sensors = CardSensors(tmp_path, loading(management=known))
    asked = [sensors.power, sensors.temperature, sensors.clock, sensors.throttled]
    assert [read() for read in asked] == [None] * 4
    assert sensors.memory(PROCESS) is None


def test_a_jetsons_files(tmp_path: Path) -> None:
    sensors = CardSensors(put(tmp_path, ORIN), loading())
    assert (sensors.clock(), sensors.throttled()) == (918.0, 3)
    put(tmp_path, {"sys/class/devfreq/17000000.gpu/cur_freq": "busy"})
    assert sensors.clock() is None


@pytest.fixture
def watched(tmp_path: Path) -> tuple[Monitor, Management, Callable[[float], None]]:
    """A monitor, its card, and what lets time pass."""
    known, now = Management({PROCESS: 300_000_000}), [0]
    watch = Monitor(Sensors(tmp_path), PROCESS, lambda: now[0], CardSensors(tmp_path, loading(management=known)))

    def go(length: float) -> None:
        for _ in range(round(length / INTERVAL)):
            now[0] += round(1e9 * INTERVAL)
            watch.look()

    return watch, known, go


def test_a_card_is_watched(watched: tuple[Monitor, Management, Callable[[float], None]]) -> None:
    watch, known, go = watched
    go(1.0)
    known.processes = {PROCESS: 500_000_000}
    go(1.0)
    assert watch.card(seconds((0.0, 2.0))) == {
        "card_bytes": 500_000_000,
        "card_energy_j": pytest.approx(123.0),
        "card_temp_c": 58.0,
        "card_clock_mhz": 1410.0,
    }
    assert "card_energy_j" not in watch.card(seconds((0.0, 0.2))), "too short to tell"
    assert watch.card(seconds((5.0, 6.0))) == {}
    assert watch.warnings([]) == []
    known.reasons = 0x4
    go(0.2)
    assert watch.warnings([]) == ["card throttled: its driver says that power or heat holds it back"]


def test_the_card_is_let_go_of_at_the_end(tmp_path: Path) -> None:
    known = Management({PROCESS: 1})
    with Monitor(Sensors(tmp_path), PROCESS, card=CardSensors(tmp_path, loading(management=known))):
        assert known.shut == 0
    assert known.shut == 1


PARTS = [
    {"covers": ["vision", "projector"], "engine": "onnxruntime", "provider": "tensorrt"},
    {"covers": ["decoder"], "engine": "llamacpp", "provider": "cuda"},
]


def test_rows_of_a_card_say_so() -> None:
    event = {
        "plan": {"parts": PARTS, "threads": 2, "context": 64, "gpu_layers": 25},
        "kernels": {},
        "prompt_tokens": 9,
        "image_tokens": 4,
    }
    found = runner._planned(event, with_card(detect(), CARD))
    assert found["backends"] == "onnxruntime tensorrt,llamacpp cuda"
    assert (found["providers"], found["n_gpu_layers"]) == (["tensorrt", "cuda"], 25)
    plain: Any = [{**part, "provider": "cpu"} for part in PARTS]
    found = runner._planned({**event, "plan": {**event["plan"], "parts": plain, "gpu_layers": None}}, detect())
    assert found["backends"] == "onnxruntime,llamacpp"
    assert "providers" not in found


def test_providers_are_tried_in_turn() -> None:
    found = sweep(["a"], "", "", "", "cpu,cuda", Request(gpu_layers=3))
    assert [(one.provider, one.gpu_layers) for one in found] == [("cpu", 3), ("cuda", 3)]
    assert Request.from_text(found[1].to_text()) == found[1]
