"""Guard: proof and speed of a bundle on this machine, held to what was kept of it: another version of an engine may
compute another model, crash, or be slower."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge.bench import results, runner
from edge.bench.compare import Change, compare
from edge.bench.request import Request
from edge.bench.schema import Row
from edge.bundle.manifest import Bundle
from edge.devices import whole_files
from edge.engines import installed_engines, made_for
from edge.errors import EdgeError

SCHEMA = 1
_MOST = 1 << 22  # bytes of a file: thousands of rows
_HINT = "edge guard BUNDLE --baseline FILE writes one where none is"


@dataclass(frozen=True)
class Watched:
    """A bundle, today. `failures`: what is worse than it may be, in words; none: all holds."""

    name: str
    engines: Mapping[str, str]  # library -> its version
    proof: Mapping[str, Any] | None = None  # `edge.verify.Report` as JSON; None: a stage could not run
    rows: tuple[Row, ...] = ()
    changes: tuple[Change, ...] = ()
    updated: tuple[str, ...] = ()  # libraries of another version than the baseline's, in words
    failures: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        kept = {"name": self.name, "ok": not self.failures, "engines": dict(self.engines), "proof": self.proof}
        told = {"changes": [asdict(change) for change in self.changes], "updated": list(self.updated)}
        return {**kept, **told, "failures": list(self.failures), "rows": list(self.rows)}


def named(bundle: Bundle) -> str:
    """How a baseline knows a bundle, wherever it lies."""
    return f"{bundle.manifest.name} {bundle.manifest.recipe}"


def watch(bundle: Bundle, before: Mapping[str, Any] | None, request: Request, allowed: float) -> Watched:
    """Replay the golden sample in a process of its own, measure, and compare with the baseline's entry of this bundle.
    `allowed`: the share by which a row may be worse. Raises EdgeError where nothing can be compared."""
    name, engines = named(bundle), _versions(bundle)
    updated = tuple(_updated(before["engines"], engines)) if before else ()
    try:
        proof = runner.prove(request)
    except EdgeError as error:
        return Watched(name, engines, updated=updated, failures=(error.message,))
    if not proof["ok"]:
        stages = ", ".join(row["stage"] for row in proof["rows"] if not row["ok"])
        return Watched(name, engines, proof, updated=updated, failures=(f"does not compute the same model: {stages}",))
    rows: list[Row] = []
    failures: list[str] = []
    for row in runner.bench([request]):
        if isinstance(row, EdgeError):
            failures.append(row.message)
        else:
            rows.append(row)
    changes = compare(rows, before["rows"], allowed) if before and rows else []
    failures += [f"{change.what}: worse by {change.worse:.1%}" for change in changes if change.failed]
    return Watched(name, engines, proof, tuple(rows), tuple(changes), updated, tuple(failures))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Bundle's name -> its entry: `engines` and `rows`. Raises EdgeError on what is no baseline."""
    try:
        if path.stat().st_size > _MOST:
            raise ValueError(f"it is larger than {_MOST:,} bytes")
        data = json.loads(path.read_bytes())
        if data["schema"] != SCHEMA:
            raise EdgeError(
                f"{path} has schema {data['schema']!r}; this edge-vlm reads {SCHEMA}", hint="pip install -U edge-vlm"
            )
        return {
            str(name): {
                "engines": {str(library): str(version) for library, version in entry["engines"].items()},
                "rows": [results.require(row, f"{name}, row {n} of {path}") for n, row in enumerate(entry["rows"], 1)],
            }
            for name, entry in data["bundles"].items()
        }
    except OSError as error:
        raise EdgeError(f"cannot read {path}: {error.strerror}", hint=_HINT) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EdgeError(f"{path} is no baseline: {error}", hint=_HINT) from error


def write(path: Path, found: Sequence[Watched]) -> None:
    """Raises EdgeError when it cannot be written; what was there before stays whole then."""
    bundles = {one.name: {"engines": dict(one.engines), "rows": list(one.rows)} for one in found}
    try:
        with whole_files.aside(path) as beside:
            beside.write_text(json.dumps({"schema": SCHEMA, "bundles": bundles}, indent=1), encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"cannot write {path}: {error.strerror}", hint="check the path, and the room there") from error


def _versions(bundle: Bundle) -> dict[str, str]:
    """Of the libraries that can open its parts."""
    engines = installed_engines()
    able = (info for part in bundle.manifest.parts for info in made_for(part.format, engines))
    return {info.package: info.version for info in able if info.version}


def _updated(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    words = {name: (before.get(name, "none"), now.get(name, "none")) for name in {*before, *now}}
    return [f"{name} {old} → {new}" for name, (old, new) in sorted(words.items()) if old != new]
