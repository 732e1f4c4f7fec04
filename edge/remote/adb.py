"""Link over adb: one command on an Android device, in adb's shell or inside Termux."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import ClassVar

from edge.errors import RemoteError
from edge.remote.shell import Explanation, Link, explained

TERMUX = "/data/data/com.termux/files"
# What Termux's own shell sets.
_ENVIRONMENT = {
    "HOME": f"{TERMUX}/home",
    "PREFIX": f"{TERMUX}/usr",
    "TMPDIR": f"{TERMUX}/usr/tmp",
    "PATH": f"{TERMUX}/usr/bin:/system/bin",
    "LANG": "en_US.UTF-8",
}
LOST = "the same command goes on where it stopped"
EXPLANATIONS = (
    Explanation("unauthorized", "it does not trust this machine", "accept the question on its screen; {devices}"),
    Explanation("more than one device", "adb cannot tell which", "{devices}"),
    Explanation("offline", "it is offline", "plug it in again, or adb reconnect offline; {devices}", dropped=True),
    Explanation("not found", "adb does not see it", "{devices}", dropped=True),
    Explanation("no devices", "adb does not see it", "{devices}", dropped=True),
    Explanation("no permissions", "adb may not open it ({said})", "{devices}"),
    Explanation("cannot connect to daemon", "adb's server does not start ({said})", "adb start-server"),
    Explanation("doesn't support", "its Android is too old for adb shell -T ({said})", "Android 7 or newer"),
    Explanation("closed", "the connection was lost", LOST, dropped=True),
    Explanation("protocol fault", "the connection was lost", LOST, dropped=True),
)


@dataclass(frozen=True)
class Adb(Link):
    name: str
    serial: str
    termux: bool = False

    program: ClassVar[str] = "adb"
    missing: ClassVar[str] = "install adb (Android SDK platform-tools; Debian: apt install adb)"

    @property
    def cache(self) -> str:
        return f'"{TERMUX}/home/.cache/edge-vlm/remote"' if self.termux else "/data/local/tmp/edge-vlm/remote"

    @property
    def environments(self) -> str:
        root = f"{TERMUX}/home/.local/share" if self.termux else "/data/local/tmp"
        return f'"{root}/edge-vlm/bin/edge"'

    @property
    def same_place(self) -> tuple[str, ...]:
        return ("adb", self.serial)

    def argv(self, command: str) -> list[str]:
        """adb joins what it is given with blanks and quotes nothing: the command is one word of it."""
        if self.termux:
            settings = [f"{key}={value}" for key, value in _ENVIRONMENT.items()]
            command = shlex.join(["run-as", "com.termux", "env", *settings, "sh", "-c", command])
        return ["adb", "-s", self.serial, "shell", "-T", command]

    def by_hand(self, command: str) -> str:
        return shlex.join(["adb", "-s", self.serial, "shell", *filter(None, [command])])

    def alternatives(self) -> tuple[Link, ...]:
        return (self, replace(self, termux=True))

    def explain(self, code: int, said: str) -> RemoteError:
        return explained(self.name, EXPLANATIONS, code, said, {"devices": "adb devices -l says how it stands"})

    def install(self, requirement: str) -> str:
        serial = shlex.quote(self.serial)
        return (
            f"the app of android_demo/ measures without Python: make android, then adb -s {serial} install its APK; or "
            f"Termux, which has Python: in its terminal pkg install python openssh && pip install -U '{requirement}' "
            f"&& sshd; then here adb -s {serial} forward tcp:8022 tcp:8022 and --on ssh://localhost:8022"
        )
