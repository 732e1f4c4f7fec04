"""Bundles of schema 1, as edge-vlm 0.2 wrote them, open and answer as they did (tests/data/schema1)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from conftest import REPOSITORY
from fakes import write_model_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_bundle import damaged, json_values, places

import edge
from edge.bundle.golden import ARRAYS, Golden
from edge.bundle.manifest import Bundle, Manifest
from edge.errors import BundleError
from edge.inputs.prompt import Turn, segments
from edge.planning.sizes import guessed, sizes
from edge.types import Tokens

OLD = REPOSITORY / "tests" / "data" / "schema1"
WHOLE: dict[str, Any] = json.loads((OLD / "manifest.json").read_text())


def test_it_opens() -> None:
    bundle = Bundle.open(OLD)
    bundle.check()
    found = bundle.manifest
    assert (found.schema, found.spec.vision) == (1, None)
    assert (found.spec.decoder.rope_theta, found.spec.decoder.ffn, found.spec.decoder.family) == (10000.0, None, None)
    assert [part.weights for part in found.parts] == [None, None]
    assert found.part("decoder").options == {"tensor_type": ["ffn_down=q5_k"]}


def test_it_answers_as_one_of_this_schema(tmp_path: Path) -> None:
    new = write_model_bundle(tmp_path / "new").path
    photo = Image.new("RGB", (30, 20), "red")
    answers = []
    for path in (OLD, new):
        with edge.load(path, engine="null") as session:
            session.ask(photo, "What?", max_tokens=12)
            spec = session.bundle.manifest.spec
            cut = segments(spec.prompt, session.tokenizer, [Turn.about("What?", (session.encode_image(photo),))])
            ids = [segment.ids if isinstance(segment, Tokens) else segment.rows.shape for segment in cut]
            answers.append((session.last.token_ids, ids, spec.image))
    assert answers[0] == answers[1]


def test_its_golden_sample_is_read() -> None:
    found = Golden.load(OLD / "golden.npz")
    with np.load(OLD / "golden.npz") as file:
        assert set(file.files) == set(ARRAYS)
        for name in ("image_embeds", "logits", "tokens"):
            np.testing.assert_array_equal(getattr(found.fp32, name), file[name])
            np.testing.assert_array_equal(getattr(found.stored, name), file[f"{name}.stored"])


def test_its_sizes_are_guessed_from_bytes() -> None:
    found = Bundle.open(OLD).manifest
    decoder = found.part("decoder").size / 4 - 2 * 259 * 32
    assert sizes(found, found.parts) == guessed(found.spec.decoder, 4, 4, round(11 / 4), max(0, round(decoder)))


def test_inspect_shows_it_as_it_is() -> None:
    assert call("inspect", OLD, "--json").json == WHOLE
    shown = call("inspect", OLD).out
    assert "tensor_type ffn_down=q5_k" in shown


@pytest.mark.parametrize("device", ["rpi5", "linux-x86"])
def test_it_is_predicted(device: str) -> None:
    assert call("fit", OLD, "--device", device, "--json").json["fits"] is True


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_only_a_bundle_error_escapes_damage(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "schema1"
    if not root.exists():
        shutil.copytree(OLD, root)
    at = data.draw(st.sampled_from(places(WHOLE)))
    value = data.draw(json_values | (st.just(...) if at else st.nothing()))
    (root / "manifest.json").write_text(json.dumps(damaged(WHOLE, at, value)))
    try:
        found = Bundle.open(root).manifest
    except BundleError:
        return
    sizes(found, found.parts)


def test_what_only_schema_2_has_is_not_asked_for_in_schema_1_nor_left_out_of_schema_2() -> None:
    with pytest.raises(BundleError, match="no 'rope' section"):
        Manifest.from_json({**WHOLE, "schema": 2})
