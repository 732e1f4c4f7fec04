"""What is compiled: one version of ExecuTorch everywhere, nothing of it committed, nothing that a linker may mix."""

from __future__ import annotations

import re

import pytest
from conftest import REPOSITORY

NATIVE = REPOSITORY / "native" / "executorch"


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("Makefile", r"^EXECUTORCH := (\S+)$"),
        ("pyproject.toml", r'^executorch-native = \["edge-vlm-executorch==([\w.]+);'),
        ("native/executorch/CMakeLists.txt", r"^set\(EXECUTORCH_VERSION (\S+)\)"),
    ],
)
def test_it_is_one_version(file: str, pattern: str) -> None:
    (own,) = re.findall(r'^version = "(\S+)"$', (NATIVE / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert re.findall(pattern, (REPOSITORY / file).read_text(encoding="utf-8"), re.M) == [own]


def test_nothing_that_is_built_lies_among_the_sources() -> None:
    files = [path for path in NATIVE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert NATIVE / "CMakeLists.txt" in files
    assert {path.suffix for path in files} == {".cpp", ".h", ".py", ".toml", ".txt"}


def test_what_is_compiled_for_several_processors_includes_nothing() -> None:
    """An inline function of a library may be kept once, in the form for a processor that is not there."""
    included = re.findall(r"^#include (.+)$", (NATIVE / "src" / "flash.cpp").read_text(encoding="utf-8"), re.M)
    assert included == ['"flash.h"']
    headers = re.findall(r"^#include (.+)$", (NATIVE / "src" / "flash.h").read_text(encoding="utf-8"), re.M)
    assert headers == ["<cstddef>", "<cstdint>"]
