"""The type-check of the Compose screen, which `make android` runs, finds what it is there to find."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.apk
DEMO = REPOSITORY / "android_demo"
SCREEN = Path("app/src/compose/kotlin/dev/edgevlm/demo/AssistantScreen.kt")
FAULTS = {  # what is written instead, and what the compiler says of it
    ("Talk(screen.talk)", "Talk(screen.tale)"): "unresolved reference 'tale'",
    ("onSend = { send() }", "onSend = { Text(hint) }"): "@Composable invocations can only happen from",
    ("stringResource(R.string.photo)", "stringResource(R.id.photo)"): "unresolved reference 'id'",
    ("maxLines = 3", 'maxLines = "3"'): "actual type is 'String', but 'Int' was expected",
}


def test_a_screen_with_faults_is_refused(tmp_path):
    demo = tmp_path / "android_demo"
    shutil.copytree(DEMO, demo, ignore=shutil.ignore_patterns("assets"))
    source = (demo / SCREEN).read_text(encoding="utf-8")
    for old, new in FAULTS:
        assert source.count(old) == 1
        source = source.replace(old, new)
    (demo / SCREEN).write_text(source, encoding="utf-8")
    work = Path(os.environ["EDGE_APK"]).parent
    command = [str(demo / "typecheck"), os.environ["EDGE_ANDROID_TOOLS"], str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(errors) == len(FAULTS), done.stderr
    for sentence in FAULTS.values():
        assert sum(sentence in error for error in errors) == 1, sentence
