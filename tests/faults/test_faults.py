"""A few faults for commands that need no engine, always the same ones; make faults goes on from there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import write_model_bundle

FAULTS = Path(__file__).with_name("faults.py")
COMMANDS = ("package --zip", "package --hub", "inspect an archive")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="calls are made to fail on Linux, with a C compiler"
)


@pytest.mark.parametrize(("what", "count", "runs"), [("kills", 9, 9), ("writes", 3, 18), ("together", 3, 3)])
def test_nothing_is_lost_or_left(what: str, count: int, runs: int, tmp_path: Path) -> None:
    bundle = write_model_bundle(tmp_path / "bundle").path
    command = [sys.executable, str(FAULTS), str(bundle), what, str(count), *COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{what}: {runs} runs of 3 commands" in done.stdout
    assert done.stdout.rstrip().endswith("; 0 faults")
