"""What every first question begins with, kept between processes: on every engine as if it had been computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import call
from conftest import REPOSITORY
from exported import Exports

import edge
from edge.inference.constant_prefix import FOLDER
from edge.inference.session import Session
from edge.inputs.prompt import Turn, segments
from edge.types import Array, Tokens

DEMO = REPOSITORY / "exporters" / "demo"
STAR = DEMO / "pictures" / "shapes.png"
QUESTION = "What colour is the star?"


def first_answer(session: Session, *, whole: bool = False) -> tuple[tuple[int, ...], int, Array]:
    """Tokens, how many positions were not computed, and the logits f32 [vocab] of the prompt's end."""
    if whole:
        session.forget()
    logits: list[Array] = []
    turns = [Turn.about(QUESTION, [session.encode_image(STAR)])]
    for _ in session.converse(turns, max_tokens=12, on_token=lambda _, row: logits.append(row.copy())):
        pass
    return session.last.token_ids, session.last.cached_tokens, logits[0]


@pytest.mark.parametrize("format", ["onnx", "gguf", "tflite", "executorch"])
def test_a_kept_prefix_is_what_would_be_computed(
    exports: Exports, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what the engine computes of the prefix alone; by the whole prompt at once, it rounds otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = exports.bundle(checkpoint=DEMO / "checkpoint", format=format, calib=REPOSITORY / "calib_data")
    with edge.load(bundle, threads=1) as session:
        expected, cached, whole = first_answer(session, whole=True)
        assert cached == 0
        prompt = session._spec.prompt
        turn = Turn.about(QUESTION, [session.encode_image(STAR)])
        beginning, *rest = segments(prompt, session.tokenizer, [turn])
        assert isinstance(beginning, Tokens)
        decoder = session.decoder
        decoder.rewind(0)
        decoder.extend([beginning])
        in_two = decoder.extend(rest)
        session.warm()
    with edge.load(bundle, threads=1) as session:
        found, cached, logits = first_answer(session)
    assert found == expected
    assert cached == len(beginning) > 16
    np.testing.assert_array_equal(logits, in_two)
    noise = np.abs(in_two - whole).max()
    assert np.abs(logits - whole).max() <= noise < 0.05 * np.abs(whole).max()


def test_the_command_keeps_it_and_uses_it(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = exports.bundle(checkpoint=DEMO / "checkpoint", calib=REPOSITORY / "calib_data")
    first, second = (call("run", bundle, STAR, QUESTION, "--no-isolated", "--json").json for _ in range(2))
    assert first["cached_tokens"] == 0 < second["cached_tokens"]
    assert first["text"] == second["text"]
    (kept,) = (tmp_path / "cache" / "edge-vlm" / FOLDER).glob("*")
    kept.write_bytes(kept.read_bytes()[:-1])
    said = call("run", bundle, STAR, QUESTION, "--no-isolated")
    assert (said.code, said.out) == (0, first["text"] + "\n")
    assert "is computed anew" in caplog.text
