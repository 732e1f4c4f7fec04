"""Schemas that nobody thought of: what a model says under them parses and validates, or they were refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from constrained import GRAMMARS, KINDS, answered
from fakes import BYTES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edge.errors import UsageError
from edge.inference.constraint import Constraint
from edge.inference.guide import GuidedSampler
from edge.inference.sampling import Sampler, Sampling

NAMES = st.sampled_from(["a", "b", "a b", "é", '"', "\\", "a/b", "x\ny", "", "0", "日本"])
PATTERNS = st.sampled_from(["^a*$", "^[A-Z]{2}-\\d{3}$", "^(yes|no)$", "^\\w+@x\\.org$", '^"\\\\$', "b$", "^é{1,3}"])
VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4) | st.lists(st.integers(0, 3), max_size=2)


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(st.integers(-50, 50) | st.integers(-(10**6), 10**6))
    bounds: dict[str, Any] = {
        "minimum": low,
        "exclusiveMinimum": low - 1,
        "maximum": low + draw(st.integers(1, 30)),
        "exclusiveMaximum": low + 31,
        "multipleOf": draw(st.sampled_from([1, 2, 5, 0.5])),
    }
    keys = draw(st.sets(st.sampled_from(sorted(bounds))))
    return {"type": draw(st.sampled_from(["integer", "number"])), **{key: bounds[key] for key in sorted(keys)}}


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    least = draw(st.integers(0, 4))
    told = {"minLength": least, "maxLength": least + draw(st.integers(0, 5)), "pattern": draw(PATTERNS)}
    keys = draw(st.sets(st.sampled_from(sorted(told)), max_size=2))
    return {"type": "string", **{key: told[key] for key in sorted(keys)}}


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    least = draw(st.integers(0, 3))
    told = {
        "minItems": least,
        "maxItems": least + draw(st.integers(0, 3)),
        "items": draw(inner | st.booleans()),
        "prefixItems": draw(st.lists(inner, min_size=1, max_size=3)),
        "uniqueItems": True,
    }
    keys = draw(st.sets(st.sampled_from(sorted(told)), max_size=3))
    return {"type": "array", **{key: told[key] for key in sorted(keys)}}


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner | st.booleans(), max_size=4))
    told = {
        "required": draw(st.lists(st.sampled_from(sorted(properties)) | NAMES if properties else NAMES, unique=True)),
        "additionalProperties": draw(st.booleans() | inner),
        "patternProperties": {"^a": draw(inner)},
        "minProperties": draw(st.integers(0, 3)),
        "maxProperties": draw(st.integers(0, 4)),
    }
    keys = draw(st.sets(st.sampled_from(sorted(told)), max_size=3))
    return {"type": "object", "properties": properties, **{key: told[key] for key in sorted(keys)}}


def compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        arrays(inner),
        objects(inner),
        st.builds(lambda key, of: {key: of}, st.sampled_from(["anyOf", "oneOf", "allOf"]), several),
        st.builds(lambda one, more: {**one, "anyOf": more}, inner, several),
        st.just({"anyOf": [{"type": "null"}, {"type": "object", "properties": {"next": {"$ref": "#"}}}]}),
    )


LEAVES = st.one_of(
    st.sampled_from([{}, {"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}]),
    numbers(),
    strings(),
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, VALUES),
)
SCHEMAS = st.recursive(LEAVES, compound, max_leaves=6).filter(lambda schema: isinstance(schema, dict))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_parses_and_validates_or_its_schema_is_refused(kind: str) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(SCHEMAS, st.integers(0, 2**16), st.sampled_from([0, 1, 3, 20, 60]), st.sampled_from([0.0, 1.0]))
    def check(schema: dict[str, Any], seed: int, spare: int, temperature: float) -> None:
        try:
            constraint = Constraint.json(schema)
            text, closed, _ = answered(kind, constraint, seed, spare, temperature)
        except UsageError:
            seen["refused"] += 1
            return
        seen["closed" if closed else "whole"] += 1
        Draft202012Validator(schema).validate(json.loads(text))

    check()
    assert min(seen[way] for way in ("whole", "closed", "refused")) > 10, seen


def test_another_spelling_of_a_name_is_no_other_name() -> None:
    """A model that escapes letters would give a property that is described another value."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    tokenizer, stop = KINDS["bytes"]
    wanted = b'{"\\u0061": "x", "b\\/c": "y", "d\\n": "z"}'
    for most in range(2, 60):
        guide = GRAMMARS["bytes"].guide(Constraint.json(schema))
        sampler, ids = GuidedSampler(Sampler(Sampling()), guide, (stop,), most), []
        while len(ids) < most and not sampler.finished:
            logits = np.zeros(tokenizer.size, np.float32)
            logits[BYTES + wanted[min(len(ids), len(wanted) - 1)]] = 1
            token = sampler.pick(logits, ids)
            if token is None or token == stop:
                break
            ids.append(token)
        text = tokenizer.decode(ids)
        Draft202012Validator(schema).validate(json.loads(text))
        assert "\\u00" not in text and "\\/" not in text
