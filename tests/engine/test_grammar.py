"""Constraints in llguidance: whatever a model wants to say, its answer parses, validates and ends in time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import REPOSITORY
from constrained import GRAMMARS, KINDS, answered
from fakes import BYTES
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.inference.constraint import Constraint
from edge.inference.grammar import Grammars
from edge.inference.guide import GuidedSampler
from edge.inference.sampling import Sampler, Sampling

SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "count": {"type": "integer"},
            "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
            "note": {"type": "string"},
        },
        "required": ["name", "count", "colours"],
        "additionalProperties": False,
    },
    "any object": {"type": "object"},
    "anything": {},
    "formats": {
        "type": "object",
        "properties": {
            "when": {"type": "string", "format": "date-time"},
            "mail": {"type": "string", "format": "email"},
            "plate": {"type": "string", "pattern": "^[A-Z]{2}-\\d{4}(-[a-z]+)?$"},
            "word": {"type": "string", "minLength": 5, "maxLength": 12},
        },
        "required": ["when", "mail", "plate", "word"],
    },
    "boxes": {
        "type": "array",
        "minItems": 1,
        "maxItems": 4,
        "items": {
            "type": "object",
            "properties": {
                "label": {"type": "string"},
                "box": {
                    "type": "array",
                    "items": {"type": "number", "minimum": 0, "maximum": 1},
                    "minItems": 4,
                    "maxItems": 4,
                },
            },
            "required": ["label", "box"],
        },
    },
    "a list of itself": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "multipleOf": 7, "minimum": 100},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["value", "next"],
            }
        },
    },
    "one of some": {"enum": ["yes", "no", 3, None]},
    "a number": {"type": "number"},
    "a string": {"type": "string"},
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), spare=st.sampled_from([0, 1, 2, 5, 30, 200]), warm=st.booleans())
def test_an_answer_parses_and_validates_however_few_tokens_it_gets(
    kind: str, name: str, seed: int, spare: int, warm: bool
) -> None:
    text, _, _ = answered(kind, Constraint.json(SCHEMAS[name]), seed, spare, temperature=1.0 if warm else 0.0)
    jsonschema.validate(json.loads(text), SCHEMAS[name])
    text.encode()  # no half characters


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), spare=st.sampled_from([0, 1, 4, 40]))
def test_a_pattern_is_matched_as_a_whole(kind: str, seed: int, spare: int) -> None:
    for pattern in (r"(\d{1,3}\.){3}\d{1,3}", "yes|no|not at all", r" ?[a-f]+/[^/\n]*", r"«\p{Lu}»", "(?i)ja?"):
        text, _, _ = answered(kind, Constraint.regex(pattern), seed, spare)
        assert re.fullmatch(pattern.replace(r"\p{Lu}", r"\w"), text), (pattern, text)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(
    options=st.lists(
        words | st.sampled_from([" yes", "  ", '"', "\\n", "\n", "ye", "yes", "\x00"]), min_size=1, max_size=6
    ),
    seed=st.integers(0, 10**6),
    spare=st.sampled_from([0, 1, 20]),
)
def test_a_choice_is_one_of_them(kind: str, options: list[str], seed: int, spare: int) -> None:
    text, _, _ = answered(kind, Constraint.choice(options), seed, spare)
    assert text in options


def test_what_a_model_means_is_left_as_it_is() -> None:
    """It is closed only for want of tokens."""
    tokenizer, stop = KINDS["bytes"]
    text = '{"name": "a bus, \\"red\\" \\u0001 é", "count": -12, "colours": ["red", "blue"]}'
    for spare in (0, 100):
        guide = GRAMMARS["bytes"].guide(Constraint.json(SCHEMAS["object"]))
        meant = [BYTES + byte for byte in text.encode()]
        sampler = GuidedSampler(Sampler(Sampling()), guide, (stop,), len(meant) + spare)
        said: list[int] = []
        while not sampler.finished:
            logits = np.zeros(tokenizer.size, np.float32)
            logits[meant[len(said)]] = 1
            token = sampler.pick(logits, said)
            assert token is not None
            said.append(token)
        assert said == meant
        assert not guide.closed


def test_an_answer_that_wants_to_go_on_is_closed_in_time() -> None:
    tokenizer, stop = KINDS["bytes"]
    guide = GRAMMARS["bytes"].guide(Constraint.json(SCHEMAS["object"]))
    likes_x = np.zeros(tokenizer.size, np.float32)
    likes_x[BYTES + ord("x")] = 1
    sampler, said = GuidedSampler(Sampler(Sampling()), guide, (stop,), 60), []
    while not sampler.finished:
        said.append(sampler.pick(likes_x, said))
    assert len(said) == 60
    assert guide.closed
    found = json.loads(tokenizer.decode(said))
    assert set(found["name"]) == {"x"}
    assert (found["count"], found["colours"]) == (0, [])


@pytest.mark.parametrize(
    ("likes", "schema", "bound"),
    [(b"[", {"type": "array"}, "depth"), (b"7", {"type": "integer"}, "digits")],
)
def test_what_readers_of_json_refuse_is_not_written(likes: bytes, schema: dict[str, Any], bound: str) -> None:
    tokenizer, stop = KINDS["bytes"]
    sampler = GuidedSampler(Sampler(Sampling()), GRAMMARS["bytes"].guide(Constraint.json(schema)), (stop,), 300)
    logits, said = np.zeros(tokenizer.size, np.float32), []
    logits[BYTES + likes[0]] = 1
    while len(said) < 300 and not sampler.finished:
        token = sampler.pick(logits, said)
        if token is None or token == stop:
            break
        said.append(token)
    text = tokenizer.decode(said)
    json.loads(text)
    depth = max(text[:at].count("[") - text[:at].count("]") for at in range(len(text) + 1))
    assert (depth, len(text)) == ((64, len(text)) if bound == "depth" else (0, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_not_said(kind: str) -> None:
    (tokenizer, stop), guide = KINDS[kind], GRAMMARS[kind].guide(Constraint.regex("(?s)(<s>|</s>|.)*"))
    special = [i for i in range(tokenizer.size) if not tokenizer.spelling(i)]
    allowed = guide.allowed()
    assert allowed.sum() > 50
    assert {i for i in special if allowed[i]} <= {stop}, "which ends the answer, and is no part of it"
    spelled = GRAMMARS[kind].guide(Constraint.choice(["</s>"]))
    assert not spelled.allowed()[special].any()


def test_a_text_before_the_answer_is_not_there() -> None:
    """SentencePiece's first word has a space before it, which is no part of the text."""
    tokenizer, _ = KINDS["sentencepiece"]
    assert tokenizer.strips_space
    allowed = {
        tokenizer.spelling(i)
        for i in np.flatnonzero(GRAMMARS["sentencepiece"].guide(Constraint.choice(["the"])).allowed())
    }
    assert {b"t", b" t"} <= allowed
    allowed = {
        tokenizer.spelling(i)
        for i in np.flatnonzero(GRAMMARS["sentencepiece"].guide(Constraint.choice([" the"])).allowed())
    }
    assert allowed == {b" "}


def test_logits_beyond_the_tokenizer_are_no_tokens() -> None:
    tokenizer, stop = KINDS["bytes"]
    for vocab in (tokenizer.size + 13, BYTES + 128):
        guide = Grammars(tokenizer, vocab, (stop, vocab + 5)).guide(Constraint.regex(".*"))
        allowed = guide.allowed()
        assert allowed.shape == (vocab,)
        assert not allowed[tokenizer.size :].any()


def chain(length: int) -> dict[str, Any]:
    links = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(length)}
    return {"$defs": {**links, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def doubled(how: str, times: int) -> dict[str, Any]:
    links = {
        f"d{n}": {how: [{"$ref": f"#/$defs/d{n + 1}"}, {"type": "null"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(times)
    }
    return {"$defs": {**links, f"d{times}": {"type": ["string", "null"]}}, "$ref": "#/$defs/d0"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "itself": ({"$ref": "#"}, "nothing satisfies it"),
    "without end": (
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        "no answer that satisfies the schema was found",
    ),
    "too many items": ({"type": "array", "items": {"type": "string"}, "minItems": 10**9}, "no answer"),
    "too long": ({"type": "string", "minLength": 10**6}, "no answer"),
    "a bomb": ({"type": "string", "pattern": "^((((a{50}){50}){50}){50})$"}, "no answer|fuel|complex"),
    "a costly number": ({"type": "integer", "multipleOf": 999983, "minimum": 1}, "fuel exhausted"),
    "look-ahead": ({"type": "string", "pattern": "^(?=a)b$"}, "look-around"),
    "no pattern": ({"type": "string", "pattern": "("}, "unclosed group"),
    "many groups": ({"type": "string", "pattern": "(" * 5000 + ")" * 5000}, "regex parse error"),
    "a keyword": ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: \\["uniqueItems"\\]\\n'),
    "a format": ({"type": "string", "format": "klingon"}, "Unknown format: klingon\n"),
    "a type": ({"type": "blob"}, "Invalid type: blob\n"),
    "from afar": ({"$ref": "http://127.0.0.1:1/x.json"}, "not present"),
    "nothing": ({"enum": []}, "anyOf is empty"),
    "overlapping": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf is taken only where"),
    "a product": (
        {
            "allOf": [
                {
                    "anyOf": [
                        {"properties": {f"p{i}{j}": {"type": "string"}}, "required": [f"p{i}{j}"]} for j in range(9)
                    ]
                }
                for i in range(9)
            ]
        },
        "schema too large",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_followed_is_refused_by_name(name: str) -> None:
    schema, message = REFUSED[name]
    with pytest.raises(UsageError, match=message) as caught:
        GRAMMARS["sentencepiece"].guide(Constraint.json(schema))
    assert "docs/run.md" in str(caught.value.hint)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "schema", [chain(200), doubled("anyOf", 60), doubled("allOf", 30)], ids=["chain", "any", "all"]
)
def test_references_that_multiply_are_followed_or_refused(schema: dict[str, Any]) -> None:
    try:
        text, _, _ = answered("bytes", Constraint.json(schema), 0, 3)
    except UsageError:
        return
    jsonschema.validate(json.loads(text), schema)


def test_the_deepest_schema_that_is_taken_does_not_end_the_process() -> None:
    """The compiler recurses: in a process of its own, in a thread."""
    code = """
import threading
from pathlib import Path
from edge.inference.constraint import Constraint
from edge.inference.grammar import Grammars
from edge.inputs.tokenizer import Tokenizer
tokenizer = Tokenizer.open(Path("tests/data/tokenizer.json"))
grammars = Grammars(tokenizer, tokenizer.size, (2,))
def nested(kind, leaf, times):
    for _ in range(times):
        leaf = {"any": {"anyOf": [leaf, {"type": "null"}]}, "all": {"allOf": [leaf]},
                "items": {"type": "array", "items": leaf}, "properties": {"properties": {"a": leaf}}}[kind]
    return leaf
def work():
    for kind, times in (("any", 21), ("all", 21), ("items", 42), ("properties", 21)):
        links = {f"d{n}": nested(kind, {"$ref": f"#/$defs/d{n + 1}"}, times) for n in range(19)}
        grammars.guide(Constraint.json({"$defs": {**links, "d19": {}}, "$ref": "#/$defs/d0"}))
    print("done")
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"


def test_the_terminal_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    answered("bytes", Constraint.json(SCHEMAS["object"]), 0, 5)
    with pytest.raises(UsageError):
        GRAMMARS["bytes"].guide(Constraint.regex("("))
    assert capfd.readouterr() == ("", "")
