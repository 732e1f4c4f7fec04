"""Nothing leaves the machine unasked: each command in an empty home, under a ban that native code meets, too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import MAIN
from conftest import REPOSITORY
from exported import Exports

from edge import plugins, privacy
from exporters import targets

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="the ban is compiled, and is Linux's"
)
PATIENCE = 90  # seconds: ONNX Runtime looks its maker up within 45 s, on an idle machine in 9
ASK = """
import sys, edge
with edge.load(sys.argv[1]) as session:
    session.ask(None, "Hello?", max_tokens=1)
    print("answered", flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Home:
    """An empty one, and what a process did from there."""

    path: Path
    ban: Path

    def environment(self, **settings: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in privacy.SETTINGS}
        cache = {"HOME": str(self.path), "XDG_CACHE_HOME": str(self.path / ".cache")}
        return own | cache | {"LD_PRELOAD": str(self.ban), "NETWORK_LOG": str(self.log)} | settings

    @property
    def log(self) -> Path:
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def asked(self) -> list[str]:
        """Names that were looked up, and what was connected."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def foreign(self) -> list[str]:
        """Files that are not ours."""
        files = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return sorted(str(file) for file in files if file.parts[:2] != (".cache", "edge-vlm"))


@pytest.fixture(scope="session")
def ban(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("ban") / "ban.so"
    source = REPOSITORY / "tests" / "helpers" / "network_ban.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def home(tmp_path: Path, ban: Path) -> Home:
    (tmp_path / "home").mkdir()
    return Home(tmp_path / "home", ban)


def edge(home: Home, *arguments: object) -> None:
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=home.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (home.asked, home.foreign) == ([], [])


@pytest.mark.parametrize("format", plugins.names(targets.FORMATS))
def test_an_export_asks_nobody(home: Home, tmp_path, exports: Exports, format):
    edge(home, "export", exports.checkpoint(), "-o", tmp_path / "out", "--format", format, "--context", 256)
    edge(home, "verify", tmp_path / "out")


def test_the_run_side_asks_nobody(home: Home, exports: Exports):
    bundle = exports.bundle()
    edge(home, "run", bundle, "Hello?", "-n", "2")
    edge(home, "verify", bundle, "--against", exports.checkpoint())
    edge(home, "bench", bundle, "-r", "1", "-p", "2", "-n", "2")
    edge(home, "doctor")


def test_nobody_is_asked_later(home: Home, exports: Exports, ban, tmp_path):
    """As long as it takes a process whose user wants telemetry: that one shows that the ban sees what it must."""
    (tmp_path / "wanted").mkdir()
    wanted = Home(tmp_path / "wanted", ban)
    settings = {home: {}, wanted: {"ORT_DISABLE_TELEMETRY": "0"}}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, exports.bundle()],
            cwd=REPOSITORY,
            env=each.environment(**chosen),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for each, chosen in settings.items()
    ]
    try:
        assert [process.stdout.readline() for process in running] == [b"answered\n"] * 2
        deadline = time.monotonic() + PATIENCE
        while not wanted.asked and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
    finally:
        for process in running:
            process.communicate()
    assert (home.asked, home.foreign) == ([], [])
    if not wanted.foreign:
        pytest.skip("this onnxruntime has no telemetry: there was nothing to switch off")
    assert any("microsoft" in line for line in wanted.asked)
    assert any("deviceid" in file for file in wanted.foreign)


def test_the_ban_sees_and_stops(home: Home):
    code = "import socket\ntry: socket.create_connection(('example.invalid', 80))\nexcept OSError: print('stopped')"
    done = subprocess.run([sys.executable, "-c", code], env=home.environment(), capture_output=True, text=True)
    assert (done.stdout, home.asked) == ("stopped\n", ["getaddrinfo example.invalid"])
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: print('stopped')"
    done = subprocess.run([sys.executable, "-c", code], env=home.environment(), capture_output=True, text=True)
    assert done.stdout == "stopped\n" and len(home.asked) == 2
