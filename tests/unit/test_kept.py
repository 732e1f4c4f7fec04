"""Conversations that take turns: each is gone on with where it was left, within so many bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fakes import write_model_bundle

import edge
from edge.inference.kept import Kept
from edge.inference.prefix import Prefix
from edge.types import Snapshot


def prefix(*held: int, size: int = 10) -> Prefix:
    return Prefix(held, Snapshot("layout", len(held), {"k": np.zeros(size, np.uint8)}))


def test_the_ones_used_least_lately_make_room() -> None:
    kept = Kept(30)
    for start in (10, 20, 30):
        kept.add(prefix(start, 1, 2))
    assert (len(kept), kept.nbytes) == (3, 30)
    assert kept.best([10, 1, 9], 1) is not None  # used: 20 is the oldest now
    kept.add(prefix(40, 1, 2))
    assert (len(kept), kept.nbytes) == (3, 30)
    assert kept.best([20, 1, 2], 0) is None
    assert kept.best([10, 1, 2], 0) is not None


def test_what_goes_on_from_another_stands_in_its_place() -> None:
    kept = Kept(100)
    kept.add(prefix(1, 2))
    kept.add(prefix(1, 2, 3))
    assert len(kept) == 1
    assert kept.holds([1, 2]) and kept.holds([1, 2, 3]) and not kept.holds([1, 2, 4])


def test_one_that_is_too_large_is_not_kept() -> None:
    kept = Kept(9)
    kept.add(prefix(1, 2))
    assert (len(kept), kept.nbytes) == (0, 0)


def test_the_longest_beginning_is_found_if_it_is_long_enough() -> None:
    kept = Kept(100)
    for held in ((1, 2, 3, 4), (1, 2, 9)):
        kept.add(prefix(*held))
    found = kept.best([1, 2, 3, 8], 2)
    assert found is not None and found.held == (1, 2, 3, 4)
    assert kept.best([1, 2, 3, 8], 3) is None
    kept.clear()
    assert kept.best([1, 2, 3, 4], 0) is None


LONG = "Tell me about " + "the red circle and the blue square, "


def test_conversations_take_turns(tmp_path: Path) -> None:
    session = edge.load(write_model_bundle(tmp_path / "bundle", context=400).path, engine="null")
    alone = edge.load(tmp_path / "bundle", engine="null")
    kept = session.keep(50_000_000)
    questions = ["A" + LONG, "B" + LONG, "A" + LONG, "B" + LONG]
    cached = []
    for question in questions:
        said = session.ask(None, question, max_tokens=4)
        cached.append((session.last.cached_tokens, session.last.prompt_tokens))
        alone.forget()
        assert said == alone.ask(None, question, max_tokens=4)
    common = cached[1][0]
    assert cached[0][0] == 0 and common < 30
    assert cached[2] == cached[3] == (cached[2][1] - 1, cached[0][1])
    assert len(kept) == 2
    session.forget()
    assert len(kept) == 0
    session.ask(None, questions[0], max_tokens=4)
    assert session.last.cached_tokens == 0


def test_without_room_only_the_last_is_held(tmp_path: Path) -> None:
    session = edge.load(write_model_bundle(tmp_path / "bundle", context=400).path, engine="null")
    kept = session.keep(10)
    for question in ("A" + LONG, "B" + LONG, "A" + LONG):
        session.ask(None, question, max_tokens=4)
    assert session.last.cached_tokens < 30
    assert len(kept) == 0
