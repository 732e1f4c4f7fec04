"""Which dialect of `exporters/checkpoints/` reads a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from edge import plugins
from edge.errors import CheckpointError

DIALECTS = "exporters.checkpoints"


def of_file(suffix: str) -> ModuleType | None:
    """The one of files that end so; None: no dialect reads them."""
    modules = [plugins.load(DIALECTS, claim) for claim in _claims("SUFFIXES", suffix)]
    return _only(modules, f"files that end in {suffix!r}") if modules else None


def of_folder(file: Path, config: Mapping[str, Any]) -> ModuleType:
    """The one that recognises a config.json, of all that claim its model_type. Raises CheckpointError."""
    kind = config.get("model_type")
    claims = _claims("MODEL_TYPES", kind)
    if kind is None:  # a config that names nothing describes one of those that do not, or is none
        claims = [claim for claim in claims if plugins.load(DIALECTS, claim).recognise(config)]
    if not claims:
        known = {name for dialect in plugins.names(DIALECTS) for name in _fact(dialect, "MODEL_TYPES") if name}
        raise CheckpointError(
            f"{file} describes a {kind!r}, which no dialect reads", hint="known: " + ", ".join(sorted(known))
        )
    modules = [plugins.load(DIALECTS, claim) for claim in claims]
    found = [module for module in modules if module.recognise(config)]
    if not found:
        marks = "; ".join(f"{claim} by {' or '.join(_fact(claim, 'MARKS'))}" for claim in claims)
        raise CheckpointError(
            f"{file} describes a {kind!r} in a layout that no dialect recognises",
            hint=f"is config.json complete? A {kind!r} is recognised as {marks}",
        )
    return _only(found, str(file))


def _claims(fact: str, entry: Any) -> list[str]:
    """The dialects that list `entry` under a fact of theirs."""
    return [name for name in plugins.names(DIALECTS) if entry in _fact(name, fact)]


def _fact(dialect: str, fact: str) -> tuple[str, ...]:
    listed: tuple[str, ...] = plugins.facts(DIALECTS, dialect).get(fact, ())
    return listed


def _only(found: list[ModuleType], what: str) -> ModuleType:
    if len(found) > 1:
        names = ", ".join(module.__name__.rpartition(".")[2] for module in found)
        raise CheckpointError(
            f"several dialects read {what}: {names}", hint="report this: their `recognise` must tell them apart"
        )
    return found[0]
