"""From what a call asks for to one target a role, checked against the formats' tables before a byte is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from edge import devices, plugins
from edge.bundle.manifest import MANIFEST, Bundle, Manifest
from edge.errors import UsageError
from edge.recipes import DEFAULT, RECIPES, SEARCH, Recipe, Target

FORMATS = "exporters.formats"
Options = Mapping[str, Mapping[str, Any]]  # format -> option -> value, as `exporters.formats` describes them
NO_OPTIONS: Options = MappingProxyType({})


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
    options: Options = NO_OPTIONS,
) -> Recipe:
    """The recipe that a call means. A format takes each role that it can write, and leaves the others; so does a bare
    scheme; `role=scheme` sets one. In any letter case. A recipe goes before the device's own. Options of a format
    may add roles or leave some out.

    Raises UsageError with the legal list, and for an option of which nothing that is written makes use.
    """
    wanted = [word.lower() for word in wanted]
    profile = devices.profile(device) if device else None
    named = recipe or (profile.recipe if profile else None)
    start = _recipe(named) if named else _format_recipe(format, wanted)
    targets = dict(start.targets)
    if format:
        targets |= {role: Target(format, target.scheme) for role, target in targets.items() if role in schemes(format)}
    given = list(_given(options))
    for option in given:
        targets = _kept(targets, option)
    for word in wanted:
        role, named, scheme = word.rpartition("=")
        targets |= _set_one(targets, role, scheme) if named else _set_able(targets, scheme)
    for role, target in targets.items():
        _check(role, target)
    for option in given:
        _require_use(targets, option)
        targets |= _added(option)
    own = targets == start.targets and not any(option.facts.get("custom") for option in given)
    name = start.name if own else "custom"
    kept = {role: layers for role, layers in start.widened.items() if targets.get(role) == start.targets[role]}
    same = targets.get("decoder") == start.targets["decoder"]
    return Recipe(name, targets, kept, start.quantize if same else SEARCH)


class Option(NamedTuple):
    """One that was given."""

    format: str
    name: str
    value: Any
    facts: Mapping[str, Any]  # of the format's OPTIONS

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def _given(options: Options) -> Iterator[Option]:
    for format, values in options.items():
        schemes(format)
        known = plugins.facts(FORMATS, format)["OPTIONS"]
        for name, value in values.items():
            if name not in known:
                raise UsageError(f"{format} has no option {name!r}", hint="one of: " + ", ".join(known))
            if value != known[name]["default"]:
                yield Option(format, name, value, known[name])


def _require_use(targets: Mapping[str, Target], option: Option) -> None:
    roles = [option.facts["role"]] if "role" in option.facts else list(targets)
    able = [targets[role] for role in roles if role in targets]
    if all(target.format != option.format for target in able):
        raise UsageError(
            f"{option.flag} is for {option.facts['for']}, and none is written", hint=f"add --format {option.format}"
        )


def _kept(targets: Mapping[str, Target], option: Option) -> dict[str, Target]:
    """What an option leaves that says which roles are written; one that is missing is as the format's recipe has it."""
    if "keeps" not in option.facts:
        return dict(targets)
    _require_use(targets, option)
    usual = _format_recipe(option.format, ()).targets
    return {role: targets.get(role) or usual[role] for role in option.facts["keeps"]}


def _added(option: Option) -> dict[str, Target]:
    """The roles that an option's values name, each in the first scheme that the format has for it."""
    if "adds" not in option.facts:
        return {}
    prefix, table = option.facts["adds"].removesuffix("{}"), schemes(option.format)
    legal = {role.removeprefix(prefix): role for role in table if role.startswith(prefix)}
    if unknown := [value for value in option.value if value not in legal]:
        raise UsageError(f"no {option.name} {unknown[0]!r}", hint="one of: " + ", ".join(legal))
    return {legal[value]: Target(option.format, next(iter(table[legal[value]]))) for value in option.value}


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


def of_bundle(manifest: Manifest) -> Recipe:
    """As a bundle's parts were written, with the schemes of single layers and how weights came to 4 bits; what lies
    beside the parts is left out."""
    parts = {"vision" if "vision" in part.covers else "decoder": part for part in manifest.parts}
    return Recipe(
        manifest.recipe,
        {role: Target(part.format, part.scheme) for role, part in parts.items()},
        {role: part.options["widened"] for role, part in parts.items() if "widened" in part.options},
        parts["decoder"].options.get("quantize", SEARCH),
    )


def _recipe(name: str) -> Recipe:
    if Path(name, MANIFEST).is_file():
        return of_bundle(Bundle.open(name).manifest)
    if name not in RECIPES:
        raise UsageError(f"no recipe {name!r}", hint="a bundle's folder, or one of: " + ", ".join(RECIPES))
    return RECIPES[name]


def _format_recipe(format: str | None, wanted: Sequence[str]) -> Recipe:
    """The first recipe whose decoder is written in a format, and in a wanted scheme if there is such a recipe; they
    stand in order of preference. One of a format that is in none takes the first scheme of each role."""
    usual = RECIPES[DEFAULT]
    if format is None:
        return usual
    table = schemes(format)
    able = [recipe for recipe in RECIPES.values() if recipe.targets["decoder"].format == format]
    so = [recipe for recipe in able if recipe.targets["decoder"].scheme in wanted]
    if able:
        return (so or able)[0]
    firsts = {role: Target(format, next(iter(table[role]))) for role in usual.targets if role in table}
    return Recipe("custom", {**usual.targets, **firsts})
