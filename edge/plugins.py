"""The file name is the registry: a folder of alternatives holds one module, or one package, for each."""

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
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return ()
    return tuple(sorted(m.name for m in pkgutil.iter_modules(spec.submodule_search_locations)))


def load(package: str, name: str) -> ModuleType:
    """Import one alternative. An ImportError of its library passes through.

    Every engine, converter and dialect is imported here, so what their libraries would send home is switched off here.
    """
    if name not in names(package):
        raise UsageError(f"no {name!r} in {package}", hint="one of: " + ", ".join(names(package)))
    privacy.keep()
    return importlib.import_module(f"{package}.{name}")


@cache
def facts(package: str, name: str) -> dict[str, Any]:
    """The literal constants at the top of an alternative (`FORMATS = ("onnx",)`), read without importing it:
    its library may be missing, or slow to import."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folders = map(Path, spec.submodule_search_locations)
    sources = (folder / file for folder in folders for file in (f"{name}.py", f"{name}/__init__.py"))
    source = next(filter(Path.is_file, sources))
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
