"""Flash attention on a card is used where verifying found it equal, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from card_fakes import ADA, with_card
from fakes import write_golden, write_model_bundle

from edge import devices, verify
from edge.bundle.manifest import MANIFEST, Bundle
from edge.engines import installed_engines
from edge.inference import flash
from edge.planning.plan import Choice, Plan
from edge.verify import Report, Row, card_tolerance


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Not written just now: nothing is remembered of such a file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = write_model_bundle(tmp_path / "bundle")
    write_golden(made)
    os.utime(made.path / MANIFEST, (1e9, 1e9))
    here = with_card(devices.detect(), ADA)
    monkeypatch.setattr(flash, "detect", lambda: here)
    monkeypatch.setattr("edge.devices.file_facts._SETTLED", 0.0)
    return Bundle.open(made.path)


def split(bundle: Bundle, provider: Any = "cuda", layers: int | None = 3) -> Plan:
    choices = tuple(Choice(part, "llamacpp", provider) for part in bundle.manifest.parts)
    return Plan(choices, 1, 64, gpu_layers=layers)


def test_it_is_the_engines_choice_on_the_processor(bundle: Bundle) -> None:
    assert flash.proven(bundle.path, split(bundle, "cpu")) is None
    assert flash.proven(bundle.path, split(bundle, layers=None)) is None
    assert flash.proven(bundle.path, split(bundle, layers=0)) is None


def test_what_was_proven_holds_for_this_card_and_bundle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = split(bundle)
    assert flash.proven(bundle.path, plan) is False
    flash.remember(bundle.path, plan, equal=True)
    assert flash.proven(bundle.path, plan) is True
    assert flash.proven(bundle.path, replace(plan, cache="q8_0")) is False
    other = with_card(devices.detect(), replace(ADA, cuda=(13, 1)))
    monkeypatch.setattr(flash, "detect", lambda: other)
    assert flash.proven(bundle.path, plan) is False, "another driver"


def test_what_differs_is_not_used(bundle: Bundle) -> None:
    flash.remember(bundle.path, split(bundle), equal=False)
    assert flash.proven(bundle.path, split(bundle)) is False


class Opened:
    def __init__(self, plan: Plan, options: dict[str, Any]) -> None:
        self.plan, self.flash = plan, options.get("flash")


GOOD, BAD = (Row("prefill", "stored", {"cosine": value}, {"cosine": 0.999}) for value in (0.9999, 0.5))


@pytest.mark.parametrize(
    ("plain", "with_flash", "said", "used"),
    [
        (GOOD, GOOD, ["flash attention: equal, and used on this card"], True),
        (GOOD, BAD, ["flash attention: not equal here, and not used"], False),
        (BAD, GOOD, [], False),
    ],
)
def test_verifying_tries_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, plain: Row, with_flash: Row, said: list[str], used: bool
) -> None:
    plan = split(bundle)

    @contextmanager
    def load(path: Path, **options: Any) -> Iterator[Opened]:
        yield Opened(plan, options)

    monkeypatch.setattr(verify, "load", load)
    monkeypatch.setattr(verify, "compare", lambda opened, golden: Report((with_flash if opened.flash else plain,)))
    found = verify.verify(bundle, provider="cuda")
    assert (found.rows, list(found.notes)) == ((plain,), said)
    assert flash.proven(bundle.path, plan) is used


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"max_abs": 1e-3, "cosine": 0.999999}, {"max_abs": 1e-2, "cosine": pytest.approx(0.99999)}),
        ({"cosine": 0.9999}, {"cosine": pytest.approx(0.999)}),
        ({"cosine": 0.999}, {"cosine": 0.999}),
        ({"cosine": 0.99}, {"cosine": 0.99}),
        ({"tokens": 1.0}, {"tokens": 1.0}),
    ],
)
def test_what_a_card_may_be_off_by(given: dict[str, float], found: dict[str, float]) -> None:
    assert card_tolerance(given) == found


def test_the_engines_that_split_are_those_that_have_it() -> None:
    assert [engine.name for engine in installed_engines() if engine.splits] == ["llamacpp"]
