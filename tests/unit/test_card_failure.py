"""A card that fails in the middle of an answer: one error, and the next question is answered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from card_fakes import with_card
from fakes import write_model_bundle

from edge import devices
from edge.engines import EngineInfo
from edge.errors import ProviderError
from edge.inference import flash, loader, session
from edge.inference.opening import ON_THE_CARD, ON_THE_CPU
from edge.inference.session import Session, load
from edge.types import Array, OpenOptions, PartFiles

NULL = EngineInfo("null", ("onnx",), "numpy", True, "1", None, providers={"cuda": ()})


class Breaking:
    """A graph of a card, which fails once it is told to."""

    def __init__(self, inner: Any, card: Card) -> None:
        self._inner, self._card = inner, card
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        self._card.runs += 1
        if self._card.runs == self._card.fails_at:
            raise ProviderError("the card failed: CUDA failure 700")
        found: dict[str, Array] = self._inner.run(feeds, into)
        return found


class Card:
    def __init__(self) -> None:
        self.runs, self.fails_at = 0, -1
        self.refuses_at = -1  # the number of a part, as they are opened
        self.opened: list[str] = []  # the provider of each part, as they are opened


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A machine with one, on which the null engine computes."""
    found = Card()
    real = loader.open_part

    def opening(part: PartFiles, engine: str, options: OpenOptions) -> Any:
        found.opened.append(options.provider)
        if len(found.opened) == found.refuses_at:
            raise ProviderError("the card opens nothing")
        opened = real(part, engine, options)
        return Breaking(opened, found) if options.provider == "cuda" else opened

    here = with_card(devices.detect())
    monkeypatch.setattr(session, "detect", lambda: here)
    monkeypatch.setattr(session, "installed_engines", lambda **_: (NULL,))
    monkeypatch.setattr("edge.engines.provider_refusals", lambda engine: {"cuda": ""})
    monkeypatch.setattr(loader, "open_part", opening)
    monkeypatch.setitem(load.__globals__["plan"].__kwdefaults__, "refusals", lambda engine: {"cuda": ""})
    return found


@pytest.fixture
def opened(tmp_path: Path, card: Card) -> Any:
    bundle = write_model_bundle(tmp_path / "bundle").path

    def make(provider: str | None) -> Session:
        return load(bundle, provider=provider)

    return make


@pytest.mark.parametrize(("provider", "then"), [("cuda", "cuda"), ("cuda,cpu", "cpu"), (None, "cpu")])
def test_the_next_question_is_answered(opened: Any, card: Card, provider: str | None, then: str) -> None:
    with opened(provider) as session:
        assert session.plan.on_card
        first = session.ask(None, "What?", max_tokens=6)
        answer = session.stream(None, "And then?", max_tokens=6)
        next(answer)
        card.fails_at = card.runs + 1
        with pytest.raises(ProviderError, match="the card failed: CUDA failure 700") as caught:
            "".join(answer)
        assert caught.value.hint == (ON_THE_CARD if then == "cuda" else ON_THE_CPU)
        card.opened.clear()
        assert session.ask(None, "What?", max_tokens=6) == first
        assert set(card.opened) == {then}
        assert session.plan.on_card == (then == "cuda")
        assert session.plan.notes == (() if then == "cuda" else ("on the CPU: the card failed: CUDA failure 700",))


@pytest.mark.parametrize("at", [1, 2])  # of the parts, which are opened side by side
def test_a_card_that_does_not_open_a_part(opened: Any, card: Card, at: int) -> None:
    card.refuses_at = at
    with opened("cuda,cpu") as session:
        assert session.ask(None, "What?", max_tokens=3)
        assert session.plan.notes == ("on the CPU: the card opens nothing",)
    card.opened.clear()
    with pytest.raises(ProviderError, match="the card opens nothing"), opened("cuda") as session:
        session.ask(None, "What?", max_tokens=3)


def test_an_image_that_the_card_fails_at(opened: Any, card: Card) -> None:
    from PIL import Image

    picture = Image.new("RGB", (20, 30), "red")
    with opened("cuda,cpu") as session:
        card.fails_at = card.runs + 1
        with pytest.raises(ProviderError):
            session.ask(picture, "What?", max_tokens=3)
        assert session.ask(picture, "What?", max_tokens=3)
        assert not session.plan.on_card


def test_conversations_that_were_kept_are_computed_anew(opened: Any, card: Card) -> None:
    with opened("cuda,cpu") as session:
        session.keep(1 << 20)
        chat = session.chat()
        first = chat.ask("What?", max_tokens=4)
        card.fails_at = card.runs + 2
        with pytest.raises(ProviderError):
            chat.ask("And then?", max_tokens=4)
        assert chat.ask("And then?", max_tokens=4)
        assert session.last.cached_tokens == 0
        assert first


def test_a_closed_session_stays_closed(opened: Any, card: Card) -> None:
    session = opened("cuda,cpu")
    answer = session.stream(None, "What?", max_tokens=6)
    next(answer)
    session.close()
    card.fails_at = card.runs + 1
    with pytest.raises(ProviderError):
        "".join(answer)


def test_flash_attention_is_the_engines_choice_where_no_layers_are_split(opened: Any, card: Card) -> None:
    with opened("cuda") as session:
        assert flash.proven(session.bundle.path, session.plan) is None
