"""Copy of a bundle to another machine: files are kept under their hash, and a cut transfer resumes.

ROOT/files/SHA256            whole, and hashed there; then dated back, so that whoever writes to it dates it otherwise
ROOT/files/SHA256.partial    as far as it came
ROOT/bundles/SHA256/NAME/    a bundle of that manifest: hard links, or copies where there are none
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge.bundle.manifest import MANIFEST, Bundle, File, describe
from edge.errors import BundleError, RemoteError
from edge.remote.host import Host
from edge.remote.said import clean
from edge.remote.shell import STALL, Done, Dropped
from edge.units import format_size

BLOCK = 1 << 16  # bytes: a cut file goes on at a whole block
CHUNK = 1 << 18
PARTIAL = ".partial"
MARGIN = 16 << 20  # bytes that stay free
_SLOWEST = 4e6  # bytes a second: how fast the worst of cards writes, and the worst of processors hashes
_FULL, _SHORT, _NO_TOOL, _DAMAGED = 30, 31, 32, 33

Progress = Callable[[float], None]  # the share of the bundle's bytes that is there

# Prints what a file's hash is, by whichever tool there is.
_DIGEST = """digest() {
  if command -v sha256sum >/dev/null; then sha256sum
  elif command -v shasum >/dev/null; then shasum -a 256
  else python3 -c 'import hashlib, sys
h = hashlib.sha256()
for block in iter(lambda: sys.stdin.buffer.read(1 << 20), b""): h.update(block)
print(h.hexdigest())'
  fi
}"""


# What was hashed is from the first day; what is newer than the second was written to since.
_DATES = """settle() { touch -t 200001010000 "$1"; }
touch -t 200001020000 "$root"/settled || exit
settled() { [ ! "$1" -nt "$root"/settled ]; }"""


@dataclass(frozen=True)
class Transfer:
    source: Path
    entry: File
    offset: int  # so many bytes are there


def copy(host: Host, bundle: Bundle, progress: Progress) -> str:
    """Bring what is missing; the bundle's folder there. Raises RemoteError, BundleError."""
    manifest = describe(bundle.path, bundle.path / MANIFEST)
    entries = (*bundle.manifest.files(), manifest)
    store(host, [(bundle.file(entry), entry) for entry in entries], progress)
    place = f"bundles/{manifest.sha256}/{bundle.path.resolve().name or 'bundle'}"
    done = host.shell.run(_assemble(host.root, place, entries))
    if done.code:
        raise _failed(host, "cannot put the bundle together", done)
    return f"{host.root}/{place}"


def store(host: Host, files: Sequence[tuple[Path, File]], progress: Progress) -> None:
    """Bring files into ROOT/files. A connection that is lost is made again as long as each brings something."""
    wanted = {entry.sha256: (source, entry) for source, entry in files}
    if strange := [sha for sha in wanted if not re.fullmatch("[0-9a-f]{64}", sha)]:
        raise BundleError(f"manifest.json: {strange[0]!r} is no sha256", hint="export the bundle again")
    total = sum(entry.bytes for _, entry in wanted.values())
    lost: Dropped | None = None
    before = 0
    while True:
        left = missing(transfers := plan(list(wanted.values()), _held_again(host, lost)))
        if lost is None:
            require_room(host, left)
        elif left >= before:
            raise lost
        try:
            _send_all(host, transfers, lambda sent, left=left: progress(1 - (left - sent) / max(total, 1)))  # type: ignore[misc]
        except Dropped as error:
            lost, before = error, left
        else:
            progress(1.0)
            return


def missing(transfers: Sequence[Transfer]) -> int:
    return sum(one.entry.bytes - one.offset for one in transfers)


def plan(files: Sequence[tuple[Path, File]], held: Mapping[str, int]) -> tuple[Transfer, ...]:
    """What to send, given the sizes of what lies there under its name."""
    found = []
    for source, entry in files:
        if held.get(entry.sha256) != entry.bytes:
            partial = held.get(entry.sha256 + PARTIAL, 0)
            found.append(Transfer(source, entry, partial // BLOCK * BLOCK if partial <= entry.bytes else 0))
    return tuple(found)


def require_room(host: Host, count: int) -> None:
    if count and count + MARGIN > host.free:
        raise RemoteError(
            f"{host.name}: no room: {format_size(count)} are to be copied, {format_size(host.free)} are free",
            hint=f"earlier bundles lie there too: {_clearing(host)}",
        )


def _clearing(host: Host) -> str:
    return host.shell.link.by_hand(f"rm -r {shlex.quote(host.root)}")


def _held(host: Host) -> dict[str, int]:
    script = f"""root={shlex.quote(host.root)}
{_DATES}
cd "$root"/files || exit
for file in *; do
  [ -f "$file" ] || continue
  case "$file" in
  *{PARTIAL}) ;;
  *) settled "$file" || continue ;;
  esac
  echo "$file $(($(wc -c <"$file")))"
done
:"""
    done = host.shell.run(script)
    if done.code:
        raise _failed(host, "cannot look at what lies there", done)
    pairs = [line.split() for line in done.out.splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and re.fullmatch("[0-9]{1,18}", pair[1])}


def _held_again(host: Host, lost: Dropped | None) -> dict[str, int]:
    try:
        return _held(host)
    except RemoteError as error:
        raise (lost or error) from error  # that it does not come back is not what went wrong first


def _send_all(host: Host, transfers: Sequence[Transfer], sent: Callable[[int], None]) -> None:
    whole = 0
    for one in transfers:
        _send(host, one, lambda count, whole=whole: sent(whole + count))  # type: ignore[misc]
        whole += one.entry.bytes - one.offset


def _send(host: Host, one: Transfer, progress: Callable[[int], None]) -> None:
    entry = one.entry
    patience = STALL + entry.bytes / _SLOWEST
    try:
        done = host.shell.feed(_receive(host.root, one), _chunks(one, progress), patience=patience)
    except OSError as error:
        raise BundleError(f"cannot read {one.source}: {error}", hint="check who may read it") from error
    if done.code == _DAMAGED and one.offset:  # what lay there was not what we had sent
        _send(host, Transfer(one.source, entry, 0), progress)
    elif done.code == _DAMAGED:
        raise BundleError(
            f"{host.name}: {entry.path} arrives with sha256 {clean(done.out)[:12]}…, expected {entry.sha256[:12]}…",
            hint="edge verify BUNDLE says whether it is sound here; else copy again",
        )
    elif done.code == _SHORT:
        raise Dropped(f"{host.name}: the connection was lost", hint="the same command goes on where it stopped")
    elif done.code == _NO_TOOL:
        raise RemoteError(
            f"{host.name}: nothing there can hash a file", hint="install sha256sum, shasum or python3 there"
        )
    elif done.code:
        raise _failed(host, f"cannot write {entry.path}", done)


def _receive(root: str, one: Transfer) -> str:
    """Blocks are put where they belong, not after what is there: a connection that was lost, and whose end over there
    still writes what it had got, does no harm; nor does another copy at the same time, which may be done first."""
    sha, partial = one.entry.sha256, one.entry.sha256 + PARTIAL
    return f"""root={shlex.quote(root)}
{_DATES}
{_DIGEST}
size() {{ {{ wc -c <"$1"; }} 2>/dev/null || echo -1; }}
leave() {{ [ $(($(size {sha}))) -eq {one.entry.bytes} ] || exit "$1"; exit 0; }}
umask 077
cd "$root"/files || exit
[ $(($(size {partial}))) -le {one.entry.bytes} ] || rm -f {partial}
: >>{partial} || exit {_FULL}
dd of={partial} bs={BLOCK} seek={one.offset // BLOCK} conv=notrunc || exit {_FULL}
[ $(($(size {partial}))) -eq {one.entry.bytes} ] || leave {_SHORT}
found=$(digest <{partial})
found=${{found%% *}}
[ -n "$found" ] || leave {_NO_TOOL}
if [ "$found" = {sha} ]; then settle {partial} && mv -f {partial} {sha} || leave {_FULL}; exit 0; fi
rm -f {partial}
echo "$found"
leave {_DAMAGED}"""


def _chunks(one: Transfer, progress: Callable[[int], None]) -> Iterator[bytes]:
    sent = 0
    with one.source.open("rb") as file:
        file.seek(one.offset)
        while sent < one.entry.bytes - one.offset and (chunk := file.read(CHUNK)):
            yield chunk
            sent += len(chunk)
            progress(sent)


def _assemble(root: str, place: str, entries: Sequence[File]) -> str:
    """Nothing happens where the bundle lies there whole and as it was; else it is made beside, and renamed."""
    whole = " && ".join(f"same {shlex.quote(f'{place}/{entry.path}')}" for entry in entries)
    folders = dict.fromkeys(str(PurePosixPath(entry.path).parent) for entry in entries)
    lines = [f'mkdir -p "$beside"/{shlex.quote(folder)}' for folder in folders]
    lines += [f'put files/{entry.sha256} "$beside"/{shlex.quote(entry.path)}' for entry in entries]
    made = "\n".join(lines)
    return f"""umask 077
root={shlex.quote(root)}
{_DATES}
cd "$root" || exit
same() {{ [ -f "$1" ] && settled "$1"; }}
if {whole}; then exit 0; fi
set -e
put() {{ ln -f "$1" "$2" 2>/dev/null || cp -p "$1" "$2"; }}
beside={shlex.quote(place + PARTIAL)}.$$
trap 'rm -rf "$beside"' EXIT
{made}
if {whole}; then exit 0; fi
rm -rf {shlex.quote(place)}
mv "$beside" {shlex.quote(place)}"""


def _failed(host: Host, what: str, done: Done) -> RemoteError:
    lines = [clean(line) for line in done.err.strip().splitlines()] or [f"exit {done.code}"]
    for words in ("No space left", "Disk quota", "File too large"):
        if said := [line for line in lines if words in line]:
            return RemoteError(
                f"{host.name}: {what}: {said[-1]}", hint=f"earlier bundles lie there too: {_clearing(host)}"
            )
    said = [line for line in lines if "records" not in line and "bytes" not in line] or lines  # dd's own count
    return RemoteError(
        f"{host.name}: {what}: {said[-1]}", hint=host.shell.link.by_hand(f"ls -l {shlex.quote(host.root)}")
    )
