"""A format is a folder behind one interface, and nothing outside it knows what it can be told."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest
from conftest import REPOSITORY

from edge import plugins
from edge.recipes import BYTES_PER_WEIGHT

FORMATS = "exporters.formats"
CONDUCTORS = (*(f"exporters/{name}.py" for name in ("export", "pipeline", "targets", "preview")), "edge/cli/export.py")
ROUNDINGS = {"none", "tensor", "row", "block", "superblock"}
each_format = pytest.mark.parametrize("format", plugins.names(FORMATS))


def source(*parts: str) -> str:
    return Path(REPOSITORY, *parts).read_text(encoding="utf-8")


def words(text: str, *kinds: int) -> set[str]:
    """Names and strings, or tokens of these kinds."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.string.strip("\"'") for token in tokens if token.type in (kinds or (tokenize.NAME, tokenize.STRING))}


@each_format
def test_a_format_is_what_the_interface_says(format: str) -> None:
    facts = plugins.facts(FORMATS, format)
    assert set(facts["SCHEMES"]) >= {"decoder"}
    assert facts["TOOLS"]
    body = ast.parse(source("exporters", "formats", format, "__init__.py")).body
    functions = {node.name: [a.arg for a in node.args.args] for node in body if isinstance(node, ast.FunctionDef)}
    assert functions["encoder"] == functions["decoder"] == ["job", "module"]
    assert functions.get("check", ["job"]) == functions.get("size", ["job"]) == ["job"]
    assert functions.get("finish", ["parts", "folder", "options"]) == ["parts", "folder", "options"]


@each_format
def test_an_option_says_what_it_is_for(format: str) -> None:
    for name, facts in plugins.facts(FORMATS, format)["OPTIONS"].items():
        assert name.isidentifier()
        assert set(facts) <= {"default", "for", "help", "metavar", "role", "adds", "keeps", "custom"}
        assert facts["default"] in (False, ())
        assert facts["for"] and facts["help"]
        roles = plugins.facts(FORMATS, format)["SCHEMES"]
        assert {facts.get("role", "decoder"), *facts.get("keeps", ())} <= set(roles)


@each_format
def test_a_ladder_leads_to_ever_wider_schemes(format: str) -> None:
    facts = plugins.facts(FORMATS, format)
    schemes, roundings = facts["SCHEMES"], facts["ACTIVATIONS"]
    for role, ladders in facts["WIDER"].items():
        assert set(ladders) <= set(schemes[role])
        for scheme, wider in ladders.items():
            sizes = [BYTES_PER_WEIGHT[format][name] for name in (scheme, *wider)]
            assert sizes == sorted(set(sizes)), f"{role} {scheme}"
            assert {scheme, *wider} <= set(roundings)
    assert {scheme for table in schemes.values() for scheme in table} <= set(roundings)
    assert set(roundings.values()) <= ROUNDINGS


@pytest.mark.parametrize("conductor", CONDUCTORS)
def test_no_conductor_reads_an_option_of_a_format(conductor: str) -> None:
    options = [name for format in plugins.names(FORMATS) for name in plugins.facts(FORMATS, format)["OPTIONS"]]
    assert {"ane", "split", "tensor_type"} <= set(options)
    assert len(options) == len(set(options)), "each is an --option of one command"
    assert words(source(conductor)) & set(options) == set()
    assert words('job.options["ane"] + split') >= {"ane", "split"}


def test_no_conductor_names_a_format() -> None:
    for conductor in CONDUCTORS:
        assert words(source(conductor), tokenize.STRING) & set(plugins.names(FORMATS)) == set(), conductor
