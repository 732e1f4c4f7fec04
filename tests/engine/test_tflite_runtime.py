"""tflite-runtime 2.14 in an environment of its own, which `make test` makes: it wants another numpy than all else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY
from exported import Exports

LEGACY = REPOSITORY / ".venv" / "legacy" / "bin" / "python"
COMMAND = "import sys; from edge.cli import main; sys.exit(main())"

pytestmark = pytest.mark.skipif(not LEGACY.exists(), reason="no Python 3.11 for tflite-runtime: make test tells")


def legacy(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(LEGACY), "-c", COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_environment_is_what_it_should_be() -> None:
    done = subprocess.run(
        [str(LEGACY), "-c", "import numpy, tflite_runtime; print(numpy.__version__, tflite_runtime.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    numpy, runtime = done.stdout.split()
    assert (numpy.split(".")[0], runtime) == ("1", "2.14.0")


@pytest.mark.parametrize("recipe", ["tflite-legacy", "tflite-fp32"])
def test_a_bundle_is_the_same_model_on_the_old_library(exports: Exports, recipe: str) -> None:
    """Vision and decoder, against torch on the same stored weights, within the format's tolerances."""
    bundle = exports.bundle(recipe=recipe)
    done = legacy("verify", bundle, "--json")
    assert done.returncode == 0, done.stderr
    rows = {(row["stage"], row["against"]): row for row in json.loads(done.stdout)["rows"]}
    for stage in ("vision", "prefill"):
        assert rows[stage, "stored"]["ok"]
        assert rows[stage, "stored"]["tolerance"]["cosine"] >= 0.999
        assert rows[stage, "stored"]["error"]["cosine"] >= 0.999
    picture = REPOSITORY / "exporters" / "demo" / "pictures" / "sign.png"
    answered = legacy("run", bundle, picture, "What is this?", "--json", "-n", "4")
    assert {part["engine"] for part in json.loads(answered.stdout)["plan"]["parts"]} == {"tflite_runtime"}


@pytest.mark.parametrize("recipe", ["tflite-w8a8-w4", "tflite-w8a8-w8"])
def test_what_it_would_compute_wrong_is_refused(exports: Exports, recipe: str) -> None:
    done = legacy("verify", exports.bundle(recipe=recipe))
    assert done.returncode == 1
    assert "wrong: its weights have several scales" in done.stderr
    assert "--recipe tflite-legacy" in done.stderr
    assert "Traceback" not in done.stderr


def test_chunks_growth_and_rewind_on_the_old_library(exports: Exports) -> None:
    """However a prompt comes, the logits are the same; over the end of the first cache, and back."""
    bundle = exports.bundle(recipe="tflite-fp32")
    code = f"""
import numpy as np, edge
from edge.types import Tokens
with edge.load({str(bundle)!r}) as session:
    decoder = session.decoder
    decoder.rewind(0)
    ids = np.random.default_rng(0).integers(3, 300, 300).tolist()
    whole = decoder.extend([Tokens(tuple(ids))]).copy()
    decoder.rewind(0)
    for begin, end in ((0, 1), (1, 34), (34, 250), (250, 258), (258, 290)):
        decoder.extend([Tokens(tuple(ids[begin:end]))])
    decoder.rewind(255)
    for one in ids[255:]:
        last = decoder.extend([Tokens((one,))])
    print(float(abs(last - whole).max()))
"""
    done = subprocess.run([str(LEGACY), "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-3
