"""The golden vectors for other languages are what the Python run side computes today."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType

import numpy as np
import pytest
from conftest import REPOSITORY

GOLDEN = REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_writer", GOLDEN / "write.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_files_are_not_stale(writer):
    files = writer.written()
    assert {path.name for path in GOLDEN.glob("*.json")} == set(files)
    for name, text in files.items():
        assert json.loads((GOLDEN / name).read_bytes()) == json.loads(text), f"{name} is stale: make golden"


def test_they_hold_what_the_readme_promises(writer):
    texts = json.loads((GOLDEN / "texts.json").read_bytes())
    assert len(texts["texts"]) == len(writer.TEXTS) + 3000
    assert all(len(own["digests"]) == 8 * 3000 for own in texts["tokenizers"].values())
    assert len(set(texts["texts"])) > 2500


def test_a_picture_is_made_of_the_numbers_that_the_docstring_says(writer):
    found = writer.picture(2, 1, seed=7, hard=False)
    x, expected = 7, []
    for _ in range(6):
        x = (1664525 * x + 1013904223) & 0xFFFFFFFF
        expected.append(x >> 24)
    assert found.tolist() == [[expected[:3], expected[3:]]]
    assert set(np.unique(writer.picture(8, 8, seed=1, hard=True))) == {0, 255}
