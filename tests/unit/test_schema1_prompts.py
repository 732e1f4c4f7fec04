"""Bundles of schema 1: their prompts feed the same token ids as the version before fed (recorded with it)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

from edge.bundle import schema1
from edge.bundle.manifest import SCHEMA, Bundle, Manifest
from edge.errors import BundleError
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.spec import PromptSpec, parse
from edge.types import Embeddings, Tokens

DATA = REPOSITORY / "tests" / "data"
RECORDED = json.loads((DATA / "schema1_prompts.json").read_text())
IMAGE = Embeddings(np.zeros((1, 1), np.float32), "image")
MakeBundle = Callable[..., Bundle]


def tokenizer(folder: Path, prefix: str) -> Tokenizer:
    """SentencePiece's, with a space before each text ("always"), or before the first one only."""
    data = json.loads((DATA / "tokenizer.json").read_text())
    if prefix == "first":
        data["normalizer"] = None
        data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return Tokenizer.open(folder / "tokenizer.json")


@pytest.mark.parametrize("which", RECORDED["segments"])
def test_the_same_ids_as_before(which: str, tmp_path: Path) -> None:
    name, prefix = which.split(", ")
    spec = parse(PromptSpec, schema1.prompt(RECORDED["prompts"][name]))
    assert spec.faults() == []
    for talk, wanted in zip(RECORDED["conversations"], RECORDED["segments"][which], strict=True):
        turns = [
            Turn.about(question, [IMAGE] * images, answer, ids and tuple(ids))
            for question, images, answer, ids in talk["turns"]
        ]
        found = segments(spec, tokenizer(tmp_path, prefix), turns, talk["system"])
        assert [list(part.ids) if isinstance(part, Tokens) else None for part in found] == wanted


def old(made: Bundle, **changes: Any) -> Bundle:
    """The bundle with a manifest of schema 1."""
    path = made.path / "manifest.json"
    data = json.loads(path.read_text())
    prompt = {**RECORDED["prompts"]["demo"], "golden": data["prompt"]["golden"], **changes}
    told = {key: value for key, value in prompt.items() if value is not ...}
    decoder = {**data["decoder"], "rope_theta": data["decoder"]["rope"]["theta"]}
    path.write_text(json.dumps({**data, "schema": 1, "prompt": told, "decoder": decoder}))
    return Bundle.open(made.path)


def test_a_bundle_is_read_and_written_anew(make_bundle: MakeBundle) -> None:
    manifest = old(make_bundle()).manifest
    assert manifest.spec.prompt.end_ids == (2,)
    assert manifest.golden_prompt["question"] == "What is this?"
    data = json.loads(json.dumps(manifest.to_json()))
    assert data["schema"] == SCHEMA and parse(PromptSpec, data["prompt"]) == manifest.spec.prompt


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({name: ...}, f"lacks {name}") for name in schema1.FIELDS),
        *(({name: 3.5}, f"has {name} 3.5") for name in schema1.FIELDS),
        *(({name: None}, f"has {name} None") for name in schema1.FIELDS if name != "bos_id"),
        ({"user": "USER:"}, "has user 'USER:', which holds {text} 0 times, not once"),
        ({"system": "{text}{text}"}, "holds {text} 2 times"),
        ({"assistant": ""}, "has assistant ''"),
        ({"image": "{text}"}, "which holds <image> 0 times"),
        ({"end_id": True}, "has end_id True"),
        ({"end_id": -1}, "end_ids (-1,)"),
        ({"stop_ids": []}, "stop_ids has no id"),
    ],
)
def test_a_damaged_prompt_is_named(make_bundle: MakeBundle, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError) as caught:
        old(make_bundle(), **changes)
    assert said in caught.value.message and "export" in str(caught.value.hint)


@pytest.mark.parametrize("prompt", [None, [], "x", {}, 3])
def test_a_prompt_that_is_none(make_bundle: MakeBundle, prompt: object) -> None:
    data = json.loads((make_bundle().path / "manifest.json").read_text())
    with pytest.raises(BundleError, match="prompt"):
        Manifest.from_json({**data, "schema": 1, "prompt": prompt})
