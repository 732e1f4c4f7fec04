"""What is compiled: one version of ExecuTorch everywhere, nothing of it committed, nothing that a linker may mix."""

from __future__ import annotations

import re

from conftest import REPOSITORY

NATIVE = REPOSITORY / "native" / "executorch"


def test_the_run_side_asks_for_the_version_that_is_built() -> None:
    (own,) = re.findall(r'^version = "(\S+)"$', (NATIVE / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    asked = re.findall(
        r'^executorch-native = \["edge-vlm-executorch==([\w.]+);',
        (REPOSITORY / "pyproject.toml").read_text("utf-8"),
        re.M,
    )
    assert asked == [own]


def test_nothing_that_is_built_lies_among_the_sources() -> None:
    files = [path for path in NATIVE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert NATIVE / "CMakeLists.txt" in files
    assert {path.suffix for path in files} == {".cpp", ".h", ".md", ".py", ".toml", ".txt"}


def test_what_is_compiled_for_several_processors_includes_nothing() -> None:
    """An inline function of a library may be kept once, in the form for a processor that is not there."""
    included = re.findall(r"^#include (.+)$", (NATIVE / "src" / "flash.cpp").read_text(encoding="utf-8"), re.M)
    assert included == ['"flash.h"']
    headers = re.findall(r"^#include (.+)$", (NATIVE / "src" / "flash.h").read_text(encoding="utf-8"), re.M)
    assert headers == ["<cstddef>", "<cstdint>"]
