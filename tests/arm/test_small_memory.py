"""The same run within a control group's memory limit, on this machine. `make test-arm` runs this file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import MAIN
from conftest import REPOSITORY
from exported import Exports

pytestmark = pytest.mark.arm
DEMO = REPOSITORY / "exporters" / "demo"
RUN = (sys.executable, "-c", MAIN, "run")
ASKED = (DEMO / "pictures" / "shapes.png", "What colour is the star?", "-t", "1", "--no-isolated", "--json")
JOIN = 'echo $$ > "$0" && exec "$@"'
MOUNT = Path("/sys/fs/cgroup")

Limited = Callable[[int], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def group() -> Iterator[tuple[Path, str]]:
    """A control group of our own below the one that we are in, and its file for the limit."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers not in ("memory", ""):
            continue
        mine = MOUNT / controllers / path.strip("/") / f"edge-vlm-{os.getpid()}"
        limit = "memory.limit_in_bytes" if controllers else "memory.max"
        try:
            mine.mkdir()
        except OSError:
            continue
        if (mine / limit).exists() and os.access(mine / limit, os.W_OK):
            yield mine, limit
            mine.rmdir()
            return
        mine.rmdir()
    pytest.skip("NOT TESTED: no control group with a memory limit can be made here; run it as root")


@pytest.fixture(scope="module", params=[{}, {"recipe": "onnx-w8a8-gguf-q4_0"}, {"format": "tflite"}], ids=str)
def within(request: pytest.FixtureRequest, exports: Exports, group: tuple[Path, str]) -> Limited:
    """`within(limit)` is `edge run` of a bundle of the demo model in that group, with no swap to flee to."""
    bundle = exports.bundle(checkpoint=DEMO / "checkpoint", **request.param)
    folder, file = group

    def run(limit: int) -> subprocess.CompletedProcess[str]:
        (folder / file).write_text(str(limit), encoding="utf-8")
        command = ["sh", "-c", JOIN, folder / "cgroup.procs", *RUN, bundle, *ASKED]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.parametrize("limit", [1 << 30, 512 << 20])
def test_a_bundle_answers_in_little_memory(within: Limited, limit: int) -> None:
    done = within(limit)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"] == "Yellow."
    assert found["plan"]["given_up"] == []
    assert found["plan"]["peak_bytes"] < limit
    assert found["peak_rss_mb"] * 1e6 < limit


def test_what_does_not_fit_is_refused_before_it_is_loaded(within: Limited) -> None:
    done = within(96 << 20)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    told = re.match(
        r"error: too little memory: .+ takes (\d+) MB at the least, .+, and (\d+) MB are there\n", done.stderr
    )
    assert told, done.stderr
    assert int(told[2]) * 1e6 < 96 << 20, "what is there is what the group leaves"
    assert "\nhint: " in done.stderr
