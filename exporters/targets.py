"""From what a call asks for to one target a role, checked against the formats' tables before a byte is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge import devices, plugins
from edge.errors import UsageError
from edge.recipes import DEFAULT, RECIPES, Recipe, Target
from exporters.gguf import tensor_types

FORMATS = "exporters.formats"


def schemes(format: str) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """role -> scheme -> tolerance, read without importing the format's converter."""
    if format not in plugins.names(FORMATS):
        raise UsageError(f"no format {format!r}", hint="one of: " + ", ".join(plugins.names(FORMATS)))
    table: Mapping[str, Any] = plugins.facts(FORMATS, format)["SCHEMES"]
    return table


def resolve(
    format: str | None,
    wanted: Sequence[str],
    recipe: str | None,
    device: str | None,
    *,
    gguf_only: bool = False,
    types: Sequence[str] = (),
    backends: Sequence[str] = (),
) -> Recipe:
    """The recipe that a call means. A format takes each role that it can write, and leaves the others; so does a bare
    scheme; `role=scheme` sets one. In any letter case. A recipe goes before the device's own. `gguf_only` leaves
    out all but the decoder and its mmproj. `types` are PATTERN=KIND, for tensors of a GGUF decoder; `backends` are what
    ExecuTorch's picture encoder is written for once more.

    Raises UsageError with the legal list.
    """
    wanted = [word.lower() for word in wanted]
    profile = devices.profile(device) if device else None
    start = _recipe(recipe or (profile.recipe if profile else _format_recipe(format, wanted)))
    targets = dict(start.targets)
    if format:
        targets |= {role: Target(format, target.scheme) for role, target in targets.items() if role in schemes(format)}
    if gguf_only:
        targets = _pair(targets)
    for word in wanted:
        role, named, scheme = word.rpartition("=")
        targets |= _set_one(targets, role, scheme) if named else _set_able(targets, scheme)
    for role, target in targets.items():
        _check(role, target)
    targets |= _backends(targets, backends)
    if types:
        targets["decoder"] = _typed(targets["decoder"], types)
    name = start.name if targets == start.targets else "custom"
    return Recipe(name, targets)


def _pair(targets: Mapping[str, Target]) -> dict[str, Target]:
    if (decoder := targets["decoder"]).format != "gguf":
        raise UsageError(f"--gguf-only, and the decoder is written as {decoder}", hint="--format gguf --gguf-only")
    usual = RECIPES[_format_recipe("gguf", ())].targets["mmproj"]
    return {"decoder": decoder, "mmproj": targets.get("mmproj", usual)}


def _typed(decoder: Target, types: Sequence[str]) -> Target:
    if decoder.format != "gguf":
        raise UsageError(f"--tensor-type, and the decoder is written as {decoder}", hint="add --format gguf")
    facts = plugins.facts(FORMATS, decoder.format)
    legal = facts["PACKED_KINDS"] + (() if decoder.scheme in facts["PACKED"] else facts["QUANTIZER_KINDS"])
    return replace(decoder, tensor_types=tuple(tensor_types.checked(word, legal) for word in types))


def _backends(targets: Mapping[str, Target], wanted: Sequence[str]) -> dict[str, Target]:
    if not wanted:
        return {}
    if all(target.format != "executorch" for target in targets.values()):
        raise UsageError("--backend is for ExecuTorch programs, and none is written", hint="add --format executorch")
    legal = {role.removeprefix("vision-"): role for role in schemes("executorch") if role.startswith("vision-")}
    if unknown := [backend for backend in wanted if backend not in legal]:
        raise UsageError(f"no backend {unknown[0]!r}", hint="one of: " + ", ".join(legal))
    return {legal[b]: Target("executorch", next(iter(schemes("executorch")[legal[b]]))) for b in wanted}


def _set_one(targets: Mapping[str, Target], role: str, scheme: str) -> dict[str, Target]:
    if role not in targets:
        raise UsageError(f"no role {role!r} in --scheme {role}={scheme}", hint="one of: " + ", ".join(targets))
    return {role: Target(targets[role].format, scheme)}


def _set_able(targets: Mapping[str, Target], scheme: str) -> dict[str, Target]:
    able = {r: Target(t.format, scheme) for r, t in targets.items() if scheme in schemes(t.format).get(r, {})}
    if not able:
        raise UsageError(f"no part can be written as {scheme!r}", hint=_legal({t.format for t in targets.values()}))
    return able


def _check(role: str, target: Target) -> None:
    if target.scheme not in schemes(target.format).get(role, {}):
        raise UsageError(f"{target.format} cannot write the {role} as {target.scheme!r}", hint=_legal({target.format}))


def _legal(formats: set[str]) -> str:
    rows = [f"{f}: {r}={'|'.join(table)}" for f in sorted(formats) for r, table in schemes(f).items()]
    return "legal schemes: " + "; ".join(rows)


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UsageError(f"no recipe {name!r}", hint="one of: " + ", ".join(RECIPES))
    return RECIPES[name]


def _format_recipe(format: str | None, wanted: Sequence[str]) -> str:
    """The first recipe whose decoder is written in a format, and in a wanted scheme if there is such a recipe; they
    stand in order of preference."""
    if format is None:
        return DEFAULT
    schemes(format)
    able = [recipe for recipe in RECIPES.values() if recipe.targets["decoder"].format == format]
    so = [recipe for recipe in able if recipe.targets["decoder"].scheme in wanted]
    return (so or able)[0].name
