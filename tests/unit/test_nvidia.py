"""What is made of the words of NVIDIA's driver, spoken by stand-ins; and the machine without one, as it is."""

from __future__ import annotations

import ctypes
import os

import pytest
from card_fakes import Driver, Management, loading

from edge.devices import nvidia
from edge.devices.nvidia import NONE, Card, inspect, management, processes


def test_without_a_driver_nothing_is_there_and_nothing_is_wrong() -> None:
    assert inspect(loading()) == NONE
    with management(loading()) as found:
        assert found is None


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (Driver(started=100), "the driver sees no card"),
        (Driver(started=803), "of different versions"),
        (Driver(started=999), "CUDA error 999"),
        (Driver(count=0), "the driver sees no card"),
    ],
)
def test_a_driver_without_a_card_says_why(driver: Driver, said: str) -> None:
    found = inspect(loading(driver))
    assert found.card is None
    assert said in found.missing


def test_a_jetson_shares_its_memory() -> None:
    found = inspect(loading(Driver())).card
    assert found == Card("Orin", (12, 6), (8, 7), 8_000_000_000, None, shared=True)
    assert found.architecture == "sm_87"


def test_a_card_of_its_own_says_what_is_free_and_who_computes_there() -> None:
    known = Management({os.getpid(): 5, 4_000_000: 7})
    found = inspect(loading(Driver(shared=0, cuda=13000), known)).card
    assert found is not None
    assert (found.free_bytes, found.cuda, found.others) == (6_000_000_000, (13, 0), ("process (4000000)",))
    assert found.closed == ""
    assert known.shut == 1


def test_a_process_is_called_by_its_name() -> None:
    found = inspect(loading(Driver(shared=0), Management({1: 5}))).card
    assert found is not None
    assert found.others[0].endswith(" (1)")


@pytest.mark.parametrize("off", [("init",), ("handle",), ("memory", "processes")])
def test_what_the_library_does_not_tell_is_not_known(off: tuple[str, ...]) -> None:
    found = inspect(loading(Driver(shared=0), Management({1: 2}, off=off))).card
    assert found is not None
    assert (found.free_bytes, found.others, found.closed) == (None, (), "")


@pytest.mark.parametrize(
    ("mode", "others", "said"),
    [(2, {}, "Prohibited"), (3, {4_000_000: 1}, "process (4000000) has it"), (3, {}, ""), (0, {4_000_000: 1}, "")],
)
def test_a_card_that_takes_no_other_process(mode: int, others: dict[int, int], said: str) -> None:
    found = inspect(loading(Driver(shared=0), Management(others, mode=mode))).card
    assert found is not None
    assert said in found.closed
    assert bool(said) == bool(found.closed)


def test_structures_are_laid_out_as_in_the_header() -> None:
    assert ctypes.sizeof(nvidia.MemoryInfo) == 24
    assert ctypes.sizeof(nvidia.ProcessInfo) == 24
    assert processes(Management({7: 8}), None) == {7: 8}
    assert processes(Management(off=("processes",)), None) is None
