"""What libraries would send home is off before they are imported, unless the user's environment says otherwise."""

from __future__ import annotations

import ast
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from edge import plugins, privacy


@pytest.fixture(autouse=True)
def _as_the_user_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in privacy.SETTINGS:
        monkeypatch.setenv(name, "")  # remembered, whatever a test leaves
        monkeypatch.delenv(name)


def at_import(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What an engine's library would find in the environment."""
    found: dict[str, str | None] = {}

    def imported(name: str, *rest: Any) -> Any:
        found.update({setting: os.environ.get(setting) for setting in privacy.SETTINGS})
        return None

    monkeypatch.setattr(importlib, "import_module", imported)
    plugins.load("runtimes", "onnxruntime")
    return found


def test_it_is_off_when_a_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_import(monkeypatch) == {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.mark.parametrize("choice", ["0", "1", "", "true"])
@pytest.mark.parametrize("name", privacy.SETTINGS)
def test_the_user_s_own_choice_stays(monkeypatch: pytest.MonkeyPatch, name: str, choice: str) -> None:
    monkeypatch.setenv(name, choice)
    assert at_import(monkeypatch) == {**privacy.SETTINGS, name: choice}


ENGINE = Path("runtimes/onnxruntime")


def importers(library: str) -> list[Path]:
    """Sources of ours that import it by name, wherever in the file."""
    found = []
    for path in (p for folder in ("edge", "runtimes", "exporters") for p in (REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found += [path.relative_to(REPOSITORY) for name in names if name.split(".")[0] == library]
    return found


def test_there_is_no_other_way_to_these_libraries() -> None:
    """ONNX Runtime in its engine, which only `plugins.load` imports; the hub where it is asked on purpose."""
    assert {path.parent for path in importers("onnxruntime")} == {ENGINE}
    assert {path.parent for path in importers("runtimes")} == {ENGINE}  # its files each other
    asking = [Path("edge/fetching/hub.py"), Path("exporters/sources/hub.py")]
    assert importers("huggingface_hub") == asking
    for path in asking:
        source = (REPOSITORY / path).read_text(encoding="utf-8")
        assert source.index("privacy.keep()") < source.index("from huggingface_hub import")
