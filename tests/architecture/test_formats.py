"""A format is a folder behind one interface, and nothing outside it knows what it can be told."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest
from conftest import REPOSITORY

from edge import plugins

FORMATS = "exporters.formats"
CONDUCTORS = ("export", "pipeline", "targets", "preview")
each_format = pytest.mark.parametrize("format", plugins.names(FORMATS))


def source(*parts: str) -> str:
    return Path(REPOSITORY, *parts).read_text(encoding="utf-8")


def words(text: str) -> set[str]:
    """Names and strings."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.string.strip("\"'") for token in tokens if token.type in (tokenize.NAME, tokenize.STRING)}


@each_format
def test_a_format_is_what_the_interface_says(format: str) -> None:
    facts = plugins.facts(FORMATS, format)
    assert set(facts["SCHEMES"]) >= {"decoder"}
    body = ast.parse(source("exporters", "formats", format, "__init__.py")).body
    functions = {node.name: [a.arg for a in node.args.args] for node in body if isinstance(node, ast.FunctionDef)}
    assert functions["encoder"] == functions["decoder"] == ["job", "module"]
    assert functions.get("check", ["job"]) == functions.get("size", ["job"]) == ["job"]
    assert functions.get("finish", ["parts", "folder", "options"]) == ["parts", "folder", "options"]


@each_format
def test_an_option_says_what_it_is_for(format: str) -> None:
    for name, facts in plugins.facts(FORMATS, format)["OPTIONS"].items():
        assert name.isidentifier()
        assert set(facts) <= {"default", "for", "help", "role", "adds", "keeps", "custom"}
        assert facts["default"] in (False, ())
        assert facts["for"] and facts["help"]
        roles = plugins.facts(FORMATS, format)["SCHEMES"]
        assert {facts.get("role", "decoder"), *facts.get("keeps", ())} <= set(roles)


@pytest.mark.parametrize("conductor", CONDUCTORS)
def test_no_conductor_reads_an_option_of_a_format(conductor: str) -> None:
    options = {name for format in plugins.names(FORMATS) for name in plugins.facts(FORMATS, format)["OPTIONS"]}
    assert {"ane", "split", "tensor_type"} <= options
    assert words(source("exporters", f"{conductor}.py")) & options == set()
    assert words('job.options["ane"] + split') >= {"ane", "split"}
