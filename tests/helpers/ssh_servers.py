"""SSH servers on loopback for OpenSSH's client, and a wire to them that is cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import asyncssh

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Wire:
    """A port that forwards to another, counts what goes there, and breaks when it is told to."""

    def __init__(self, target: int) -> None:
        self.sent = 0  # bytes towards the server
        self.connections = 0
        self.cuts: list[int] = []  # break the connection once so many bytes were sent in all; the first is next
        self.after_cut: int | None = None  # another target from then on
        self.target = target
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection now."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else accept keeps it open
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:  # nobody is there
                    near.close()
                    continue
                self._ends += [near, far]
                for source, sink, counts in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._pump, args=(source, sink, counts), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                sink.sendall(data)
                self.sent += len(data) * counts
                if counts and self.cuts and self.sent >= self.cuts[0]:
                    self.cuts.pop(0)
                    self.target = self.after_cut or self.target
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Keys:
    """A user's key, another's, and a server's, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("user", "stranger", "host"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(folder / name)
            key.write_public_key(folder / f"{name}.pub")
            (folder / name).chmod(0o600)


class AsyncServer:
    """An SSH server in this process, which runs commands as processes of this machine."""

    def __init__(self, keys: Keys, environment: Mapping[str, str]) -> None:
        self._keys, self._environment = keys, environment
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        threading.Thread(target=self._serve, daemon=True).start()
        assert self._ready.wait(20)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()

    async def _listen(self) -> None:
        self._server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[str(self._keys.folder / "host")],
            authorized_client_keys=str(self._keys.folder / "user.pub"),
            process_factory=self._run,
            encoding=None,
        )
        self.port = self._server.get_port()

    async def _close(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        pipe = asyncio.subprocess.PIPE
        local = await asyncio.create_subprocess_shell(
            process.command or "exit 1", stdin=pipe, stdout=pipe, stderr=pipe, env=dict(self._environment)
        )
        assert local.stdin and local.stdout and local.stderr
        feeding = asyncio.create_task(self._feed(process.stdin, local.stdin))
        await asyncio.gather(self._back(local.stdout, process.stdout), self._back(local.stderr, process.stderr))
        code = await local.wait()
        feeding.cancel()
        process.exit(code if code >= 0 else 128 - code)

    async def _feed(self, source: asyncssh.SSHReader[bytes], sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncssh.Error):  # it reads no more, or the connection is lost
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def _back(self, source: asyncio.StreamReader, sink: asyncssh.SSHWriter[bytes]) -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()


class OpenSshServer:
    """OpenSSH's own sshd, unprivileged: its keys, its port, its configuration."""

    def __init__(self, keys: Keys, environment: Mapping[str, str]) -> None:
        assert SSHD is not None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        settings = " ".join(f'{key}="{value}"' for key, value in environment.items())
        config = keys.folder / "sshd_config"
        config.write_text(
            f"""ListenAddress 127.0.0.1
Port {self.port}
HostKey {keys.folder / "host"}
AuthorizedKeysFile {keys.folder / "user.pub"}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
SetEnv {settings}
"""
        )
        self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=(keys.folder / "sshd.log").open("wb"))
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None, (keys.folder / "sshd.log").read_text()
            time.sleep(0.05)
        raise AssertionError("sshd does not listen")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def ssh_client(folder: Path, keys: Keys, port: int) -> Iterator[Path]:
    """An `ssh` for PATH that is OpenSSH's, with a user's configuration of its own; that file."""
    config = folder / "ssh_config"
    host = (keys.folder / "host.pub").read_text().strip()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}\n")
    config.write_text(
        f"""Host board
  HostName 127.0.0.1
  Port {port}
Host *
  IdentityFile {keys.folder / "user"}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder / "known_hosts"}
  GlobalKnownHostsFile none
"""
    )
    real = shutil.which("ssh")
    assert real, "these tests need OpenSSH's client: install openssh-client"
    bin_folder = folder / "client-bin"
    bin_folder.mkdir()
    (bin_folder / "ssh").write_text(f'#!/bin/sh\nexec {real} -F "{config}" "$@"\n')
    (bin_folder / "ssh").chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{bin_folder}:{before}"
    try:
        yield config
    finally:
        os.environ["PATH"] = before
