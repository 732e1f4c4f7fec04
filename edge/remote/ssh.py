"""Link over OpenSSH. The user's ssh_config, keys, agent and known hosts apply."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import ClassVar

from edge.errors import RemoteError
from edge.remote.shell import Explanation, Link, explained

OPTIONS = {
    "BatchMode": "yes",  # a question that nobody can answer would hang
    "ConnectTimeout": "30",
    "ServerAliveInterval": "15",  # with the next: a dead connection is noticed after a minute
    "ServerAliveCountMax": "4",
    "ClearAllForwardings": "yes",  # several connections cannot each have the port that a config forwards
    "RemoteCommand": "none",
}
LOST = "the same command goes on where it stopped"
# What ssh says, in its own words; the first that is found counts.
EXPLANATIONS = (
    Explanation(
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that is known: another machine, or somebody between",
        "when you know why it has changed: ssh-keygen -R {known}",
    ),
    Explanation("Host key verification failed", "its host key is not known", "accept it once: {login}"),
    Explanation(
        "Permission denied",
        "it lets nobody in with the keys at hand ({said})",
        "ssh-copy-id {destination}, or ssh-add; then {login} must work without a password",
    ),
    Explanation("Too many authentication failures", "it refused every key ({said})", "name one in ~/.ssh/config"),
    Explanation("Could not resolve hostname", "there is no such name", "check the name, or ~/.ssh/config"),
    Explanation("Connection refused", "it refuses the connection", "is sshd running there, on that port? {login}"),
    Explanation("No route to host", "there is no way to it", "is it on, and on this network?"),
    Explanation("Network is unreachable", "there is no way to it", "is this machine on that network?"),
    Explanation("timed out", "it does not answer", "is it on, and on this network?"),
    Explanation("Timeout, server", "the connection was lost", LOST, dropped=True),
    Explanation("kex_exchange_identification", "it closed the connection ({said})", "{login}", dropped=True),
    Explanation("closed by remote host", "the connection was lost", LOST, dropped=True),
    Explanation("Connection closed", "the connection was lost", LOST, dropped=True),
    Explanation("reset by", "the connection was lost", LOST, dropped=True),
    Explanation("Broken pipe", "the connection was lost", LOST, dropped=True),
)


@dataclass(frozen=True)
class Ssh(Link):
    name: str
    host: str
    user: str | None = None
    port: int | None = None

    program: ClassVar[str] = "ssh"
    missing: ClassVar[str] = "install OpenSSH's client (openssh-client)"
    cache: ClassVar[str] = '"${XDG_CACHE_HOME:-$HOME/.cache}/edge-vlm/remote"'
    environments: ClassVar[str] = '"$HOME/.local/share/edge-vlm/bin/edge" "$HOME/.local/bin/edge"'

    @property
    def same_place(self) -> tuple[str, ...]:
        return ("ssh", self.host.lower(), self.user or "", str(self.port or ""))

    def argv(self, command: str) -> list[str]:
        options = [f"-o{key}={value}" for key, value in OPTIONS.items()]
        return ["ssh", "-T", *options, *self._where(), "--", self.host, command]

    def by_hand(self, command: str) -> str:
        return shlex.join(["ssh", *self._where(), self.host, *filter(None, [command])])

    def alternatives(self) -> tuple[Link, ...]:
        return (self,)

    def explain(self, code: int, said: str) -> RemoteError:
        port = [] if self.port is None else ["-p", str(self.port)]
        destination = f"{self.user}@{self.host}" if self.user else self.host
        words = {
            "login": self.by_hand(""),
            "destination": shlex.join([*port, destination]),
            "known": shlex.quote(self.host if self.port in (None, 22) else f"[{self.host}]:{self.port}"),
        }
        return explained(self.name, EXPLANATIONS, code, said, words)

    def install(self, requirement: str) -> str:
        venv = "~/.local/share/edge-vlm"
        return self.by_hand(f"python3 -m venv {venv} && {venv}/bin/pip install -U '{requirement}'")

    def _where(self) -> list[str]:
        user = [] if self.user is None else ["-l", self.user]
        return user + ([] if self.port is None else ["-p", str(self.port)])
