"""Build backend: scikit-build-core on the C++ libraries of ExecuTorch's own wheel, which is fetched where
`CMAKE_ARGS` names none, without what it would install.

`EDGE_EXECUTORCH_PIP` holds pip's options for another machine's wheel: `--platform linux_aarch64 …`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scikit_build_core import build
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist

__all__ = ["build_sdist", "build_wheel", "get_requires_for_build_sdist", "get_requires_for_build_wheel"]

_SETTINGS = "-DEXECUTORCH="


def get_requires_for_build_wheel(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    return [*build.get_requires_for_build_wheel(config_settings), "pip"]


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    with _executorch():
        return build.build_wheel(wheel_directory, config_settings, metadata_directory)


@contextlib.contextmanager
def _executorch() -> Iterator[None]:
    given = os.environ.get("CMAKE_ARGS", "")
    if _SETTINGS in given:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CMAKE_ARGS"] = f"{given} {_SETTINGS}{shlex.quote(str(_unpacked(Path(folder))))}".strip()
        try:
            yield
        finally:
            os.environ["CMAKE_ARGS"] = given


def _unpacked(folder: Path) -> Path:
    version = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    options = shlex.split(os.environ.get("EDGE_EXECUTORCH_PIP", ""))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--only-binary", ":all:", *options, "--dest", str(folder), f"executorch=={version}"], check=True
    )
    (wheel,) = folder.glob("executorch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "executorch")
    return folder / "executorch"
