"""Plugins: a folder of alternatives holds one module or package for each; the file name is the registry."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from edge import privacy
from edge.errors import UsageError


@cache
def names(package: str) -> tuple[str, ...]:
    """The alternatives in a package, sorted, without importing any of them."""
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:  # the package around it is not installed
        return ()
    if spec is None or spec.submodule_search_locations is None:
        return ()
    return tuple(sorted(m.name for m in pkgutil.iter_modules(spec.submodule_search_locations)))


def load(package: str, name: str) -> ModuleType:
    """Import one alternative. An ImportError passes through: its library, or the whole package, is not installed.
    Raises UsageError, with the alternatives, when there is no such one.

    Every engine, converter and dialect is imported here, so what their libraries would send home is switched off here.
    """
    known = names(package)
    if known and name not in known:
        raise UsageError(f"no {name!r} in {package}", hint="one of: " + ", ".join(known))
    privacy.keep()
    return importlib.import_module(f"{package}.{name}")


@cache
def facts(package: str, name: str) -> dict[str, Any]:
    """The literal constants at the top of an alternative (`FORMATS = ("onnx",)`), read without importing it:
    its library may be missing, or slow to import."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations)))
    module = folder / f"{name}.py"
    source = module if module.is_file() else folder / name / "__init__.py"
    found: dict[str, Any] = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and target.id.isupper() and value is not None:
                try:
                    found[target.id] = ast.literal_eval(value)
                except ValueError:
                    continue  # not a literal: not a fact that can be read from outside
    return found
