"""Dialects are asked: of those that list a `model_type` or a suffix, exactly one takes the checkpoint."""

from __future__ import annotations

import json

import pytest
from newcomers import newcomers

from edge import plugins
from edge.errors import CheckpointError
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.dialects import DIALECTS

DIALECT = """
from dataclasses import dataclass

MODEL_TYPES = {types!r}
MARKS = {marks!r}


@dataclass(frozen=True)
class Read:
    by: str
    name: str


def recognise(config):
    return any(mark in config for mark in MARKS)


def read(source, *, vision_tower, mmproj, context, adapter):
    return Read(__name__.rpartition(".")[2], source.name)
"""
FILES = """
SUFFIXES = (".gguf",)


def read(source, *, vision_tower, mmproj, context):
    raise AssertionError("never asked")
"""


def folder(tmp_path, **config):
    place = tmp_path / "checkpoint"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    return str(place)


# By the alphabet the first of these stands before all real dialects, and the second behind them.
@pytest.mark.parametrize(("mark", "by"), [("one", "aardvark"), ("two", "zebra")])
@pytest.mark.parametrize("kind", ["both", "llava", "mobilevlm_v9"])
def test_each_layout_of_a_model_type_has_its_dialect(tmp_path, mark, by, kind):
    types = ("both", "llava", "mobilevlm_v9")
    sources = {
        "aardvark": DIALECT.format(types=types, marks=("one",)),
        "zebra": DIALECT.format(types=types, marks=("two", "deux")),
    }
    with newcomers(tmp_path / "more", DIALECTS, sources):
        found = open_checkpoint(folder(tmp_path, model_type=kind, **{mark: 1}))
        assert (found.by, found.name) == (by, "checkpoint")
        with pytest.raises(CheckpointError, match=r"several dialects read .*config\.json: aardvark, zebra"):
            open_checkpoint(folder(tmp_path, model_type=kind, one=1, deux=2))
        with pytest.raises(CheckpointError, match=f"describes a '{kind}' in a layout that no dialect") as caught:
            open_checkpoint(folder(tmp_path, model_type=kind))
        assert "aardvark by one" in caught.value.hint
        assert "zebra by two or deux" in caught.value.hint
    assert "zebra" not in plugins.names(DIALECTS)


def test_a_dialect_takes_no_model_type_from_another(tmp_path):
    """One that lists a `model_type` of LLaVA's does not get what it does not recognise."""
    sources = {"aardvark": DIALECT.format(types=("llava", "llava_llama"), marks=("one",))}
    with newcomers(tmp_path / "more", DIALECTS, sources):
        for kind in ("llava", "llava_llama"):
            with pytest.raises(CheckpointError, match="has no weights"):
                open_checkpoint(folder(tmp_path, model_type=kind, mm_vision_tower="clip"))


@pytest.mark.parametrize("kind", [None, 3, [], ["llava"], {"llava": 1}, "", "LLAVA", "llava ", "qwen2_vl"])
def test_a_model_type_that_nobody_lists(tmp_path, kind):
    with pytest.raises(CheckpointError, match="which no dialect reads") as caught:
        open_checkpoint(folder(tmp_path, model_type=kind))
    assert "mobilevlm" in caught.value.hint


def test_two_dialects_of_one_suffix(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"")
    with (
        newcomers(tmp_path / "more", DIALECTS, {"other": FILES}),
        pytest.raises(CheckpointError, match=r"several dialects read files that end in '\.gguf': gguf, other"),
    ):
        open_checkpoint(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("name", plugins.names(DIALECTS))
def test_a_dialect_says_what_it_reads(name):
    facts = plugins.facts(DIALECTS, name)
    assert facts.get("SUFFIXES") or (facts["MODEL_TYPES"] and facts["MARKS"])
