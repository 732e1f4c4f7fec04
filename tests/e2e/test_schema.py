"""Answers that are held to a schema, on every engine of this machine, by command and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from commands import call
from conftest import REPOSITORY
from exported import Exports

import edge
from edge.inference.constraint import Constraint
from edge.inference.sampling import Sampling

DEMO = REPOSITORY / "exporters" / "demo"
SEEN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue", "yellow"]},
        "words": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "sure": {"type": "boolean"},
    },
    "required": ["colour", "words", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def demo(exports: Exports) -> Path:
    return exports.bundle(checkpoint=DEMO / "checkpoint", calib=REPOSITORY / "calib_data")


@pytest.mark.parametrize("format", ["onnx", "gguf", "tflite", "executorch"])
def test_an_answer_validates_whatever_the_engine(exports: Exports, format: str) -> None:
    """The weights are random numbers: what they say by themselves is nothing like JSON."""
    with edge.load(exports.bundle(format=format), threads=1) as session:
        for seed, most in enumerate((40, 60, 120)):
            sampling = Sampling(temperature=1.0, seed=seed)
            text = session.ask(None, "What is it?", max_tokens=most, sampling=sampling, schema=SEEN)
            jsonschema.validate(json.loads(text), SEEN)
            assert session.last.generated_tokens <= most
        assert session.ask(None, "Is it?", schema=Constraint.choice(["yes", "no"])) in ("yes", "no")


def test_a_command_prints_what_the_schema_says(demo: Path, tmp_path: Path) -> None:
    schema, picture = tmp_path / "schema.json", DEMO / "pictures" / "shapes.png"
    schema.write_text(json.dumps(SEEN))
    said = call("run", demo, picture, "What colour is the star?", "--schema", schema)
    assert said.code == 0, said.err
    jsonschema.validate(json.loads(said.out), SEEN)
    told = call("run", demo, picture, "What colour is the star?", "--schema", schema, "-n", 34, "--json").json
    jsonschema.validate(json.loads(told["text"]), SEEN)
    assert told["generated_tokens"] <= 34


def test_a_trained_model_says_what_it_would(demo: Path) -> None:
    """A constraint that its own answer satisfies changes nothing."""
    picture, question = DEMO / "pictures" / "shapes.png", "What colour is the star?"
    with edge.load(demo) as session:
        plain = session.ask(picture, question)
        assert session.ask(picture, question, schema=Constraint.regex("[A-Z][a-z]+\\.")) == plain == "Yellow."
        colours = ["Red.", "Green.", "Yellow.", "Blue."]
        chat = session.chat(picture)
        assert chat.ask(question, schema=Constraint.choice(colours)) == plain
        assert chat.ask(question, schema=Constraint.choice(["Red.", "Blue."])) in ("Red.", "Blue.")


def test_a_schema_that_cannot_be_followed(demo: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "uniqueItems": true}')
    said = call("run", demo, "Why?", "--schema", schema)
    assert (said.code, said.out) == (2, "")
    assert "uniqueItems" in said.err and "docs/run.md" in said.err
    schema.write_text('{"const": "a text that takes more than three tokens"}')
    said = call("run", demo, "Why?", "--schema", schema, "-n", 3)
    assert (said.code, said.out) == (2, "")
    assert "max_tokens is 3" in said.err and "--max-tokens" in said.err
