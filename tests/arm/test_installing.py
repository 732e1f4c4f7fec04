"""What an ARM machine installs: wheels alone, and how large they are. `make test-arm` runs this file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytestmark = pytest.mark.arm
LARGEST = 150_000_000  # bytes of the run side without engines
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34, 35, 36)] + ["manylinux2014_aarch64"]


def resolved(python: str, extra: str) -> dict[str, str]:
    """Distribution -> file that pip takes for 64-bit ARM when it may compile nothing."""
    (wheel,) = Path(os.environ["EDGE_ARM"]).glob("source/dist/edge_vlm-*.whl")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"),
            *(f"--platform={platform}" for platform in PLATFORMS),
            *("--target", "nowhere", "--only-binary", ":all:", "--implementation", "cp", "--python-version", python),
            f"{wheel}[{extra}]",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: Any = json.loads(done.stdout)["install"]
    return {one["metadata"]["name"]: one["download_info"]["url"].rpartition("/")[2] for one in found}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(("extra", "library"), [("onnxruntime", "onnxruntime"), ("litert", "ai-edge-litert")])
def test_nothing_is_compiled(python: str, extra: str, library: str) -> None:
    files = resolved(python, extra)
    assert {"edge-vlm", "numpy", "pillow", "tokenizers", library} <= {name.lower() for name in files}
    assert all(file.endswith(".whl") for file in files.values())
    assert "aarch64" in files[library]


def test_the_run_side_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    """As `pip install --no-compile` leaves it; without that, pip adds the bytecode of all that might be imported."""
    site = Path(os.environ["EDGE_ARM"], "site")
    installed = _closure("edge-vlm", site)
    assert {"edge-vlm", "numpy", "pillow", "tokenizers", "typer", "rich"} <= installed.keys()
    assert not {"onnxruntime", "ai-edge-litert", "llama-cpp-python"} & installed.keys()
    sizes = {name: _bytes(one, bytecode=False) for name, one in installed.items()}
    largest = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sorted(sizes.items(), key=lambda one: -one[1])[:5])
    bytecode = sum(_bytes(one, bytecode=True) for one in installed.values())
    with capsys.disabled():
        Console().print(
            f"\nThe run side without engines: {sum(sizes.values()) / 1e6:.1f} MB ({largest}, …), "
            f"and {bytecode / 1e6:.1f} MB of bytecode"
        )
    assert sum(sizes.values()) < LARGEST


def _closure(name: str, site: Path) -> dict[str, metadata.Distribution]:
    """A distribution and all that it requires without extras, as installed in a folder."""
    installed = {_plain(one.name): one for one in metadata.distributions(path=[str(site)])}
    found: dict[str, metadata.Distribution] = {}
    waiting = [name]
    while waiting:
        one = _plain(waiting.pop())
        if one in installed and one not in found:
            found[one] = installed[one]
            wanted = [text for text in installed[one].requires or () if "extra ==" not in text]
            waiting += [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in wanted]
    return found


def _bytes(one: metadata.Distribution, *, bytecode: bool) -> int:
    places = [Path(str(file.locate())) for file in one.files or () if (file.suffix == ".pyc") is bytecode]
    return sum(place.stat().st_size for place in places if place.is_file())


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
