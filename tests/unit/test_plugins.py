from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import plugins
from edge.errors import UsageError

BOMB = "raise RuntimeError('imported')"


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of alternatives on the path, and no trace of it afterwards."""
    package = tmp_path / "zoo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield package
    for name in [m for m in sys.modules if m.split(".")[0] == "zoo"]:
        del sys.modules[name]
    forget()


def forget() -> None:
    plugins.names.cache_clear()
    plugins.facts.cache_clear()


def test_a_package_is_an_alternative_as_a_module_is(zoo: Path) -> None:
    (zoo / "bat").mkdir()
    (zoo / "bat" / "__init__.py").write_text(f"SOUND = 'click'\n{BOMB}")
    (zoo / "owl.py").write_text("SOUND = 'hoo'")
    assert plugins.names("zoo") == ("bat", "owl")
    assert plugins.facts("zoo", "bat") == {"SOUND": "click"}


def test_the_file_name_is_the_registry(zoo: Path) -> None:
    (zoo / "owl.py").write_text("SOUND = 'hoo'")
    (zoo / "ant.py").write_text(BOMB)
    (zoo / "notes.txt").write_text("no alternative")
    assert plugins.names("zoo") == ("ant", "owl")
    assert plugins.load("zoo", "owl").SOUND == "hoo"


def test_a_package_that_is_not_installed_has_no_alternatives() -> None:
    assert plugins.names("no_such_package_anywhere") == ()


def test_a_module_has_no_alternatives() -> None:
    assert plugins.names("json.decoder") == ()


def test_an_unknown_name_is_refused_with_the_legal_ones(zoo: Path) -> None:
    (zoo / "owl.py").write_text("")
    with pytest.raises(UsageError) as caught:
        plugins.load("zoo", "yeti")
    assert caught.value.message == "no 'yeti' in zoo"
    assert "owl" in str(caught.value.hint)


def test_a_missing_library_passes_through(zoo: Path) -> None:
    (zoo / "owl.py").write_text("import no_such_library_anywhere")
    with pytest.raises(ModuleNotFoundError, match="no_such_library_anywhere"):
        plugins.load("zoo", "owl")


def test_facts_are_read_without_importing(zoo: Path) -> None:
    (zoo / "owl.py").write_text(
        "FORMATS = ('onnx',)\nPACKAGE: str = 'owl-runtime'\nCOUNT: int\nWHEN = now()\nlower = 1\nA = B = 2\n" + BOMB
    )
    assert plugins.facts("zoo", "owl") == {"FORMATS": ("onnx",), "PACKAGE": "owl-runtime", "A": 2, "B": 2}
    assert "zoo.owl" not in sys.modules


def test_a_package_in_one_that_is_not_installed_has_no_alternatives() -> None:
    assert plugins.names("no_such_package_anywhere.formats") == ()
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        plugins.load("no_such_package_anywhere.formats", "owl")
