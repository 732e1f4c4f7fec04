"""Says what is wrong with a decoder and an mmproj in GGUF that somebody else made, and writes corrected copies.

Neither torch nor the `gguf` package is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edge.bundle import staging
from edge.errors import BundleError, UsageError
from edge.formats import gguf
from edge.formats.gguf import GGUF
from edge.formats.gguf_report import Findings
from exporters.gguf import decoder_faults, mmproj_faults
from exporters.gguf.fault import Change, Row, Rows
from exporters.gguf.names import DECODER, MMPROJ, WORKAROUND
from exporters.gguf.rewrite import rewrite

LISTS = (*decoder_faults.LISTS, *mmproj_faults.LISTS)  # the settings that are read whole
_ROLES = {DECODER: "decoder", MMPROJ: "mmproj"}
_EXAMPLE = "edge doctor MODEL.gguf MMPROJ.gguf"


def diagnose(paths: Sequence[Path]) -> Findings:
    """One file or a pair, in any order. Raises BundleError on a file that is damaged or of no such model, UsageError on
    two of a kind."""
    found = _open(paths)
    return _findings(found, _examine(found))


def repair(paths: Sequence[Path], to: Path, position_workaround: bool) -> Findings:
    """Write corrected copies into the new folder `to`, and say what is left. The files themselves are not touched.

    Raises BundleError on what cannot be corrected, UsageError where `position_workaround` is for no file.
    """
    found = _open(paths)
    if position_workaround and "mmproj" not in found:
        raise UsageError("--mtmd-position-workaround is for an mmproj, and none is given", hint=_EXAMPLE)
    rows = _examine(found)
    if lost := [row.finding for row in rows if row.finding.status == "wrong" and not row.change]:
        why = "; ".join(f"{finding.about}: {finding.check}: {finding.found}" for finding in lost)
        raise BundleError(f"cannot be repaired: {why}", hint=lost[0].cost)
    with staging.create(to, bundle=False) as folder:
        copies = []
        for role, file in found.items():
            change = Change()
            for row in rows:
                if row.change and row.finding.about == role:
                    change |= row.change
            if role == "mmproj" and position_workaround and file.settings.get(WORKAROUND) is not True:
                change |= Change({WORKAROUND: True}, rolled=True)
            copies.append(folder / _name(role, file.path))
            rewrite(file, copies[-1], change)
        left = diagnose(copies)
        if not left.ok:
            raise AssertionError(f"still wrong: {[row for row in left.rows if row.status == 'wrong']}")
    return replace(left, written=tuple(str(to / copy.name) for copy in copies))


def _open(paths: Sequence[Path]) -> Mapping[str, GGUF]:
    """By role: the decoder, the mmproj, or both in this order."""
    files: dict[str, GGUF] = {}
    for path in paths:
        file = gguf.read(path, LISTS)
        if file.architecture not in _ROLES:
            raise BundleError(
                f"{path.name} holds {file.architecture!r}: neither the decoder nor the mmproj of a MobileVLM or LLaVA",
                hint=_EXAMPLE,
            )
        role = _ROLES[file.architecture]
        if role in files:
            raise UsageError(f"{files[role].path.name} and {path.name} are both a {role}", hint=_EXAMPLE)
        files[role] = file
    return {role: files[role] for role in _ROLES.values() if role in files}


def _examine(found: Mapping[str, GGUF]) -> list[Row]:
    rows: list[Row] = []
    if "mmproj" in found:
        rows += mmproj_faults.examine(found["mmproj"])
    if "decoder" in found:
        model = mmproj_faults.model(found["mmproj"]) if "mmproj" in found else None
        rows = [*decoder_faults.examine(found["decoder"], model), *rows]
    if len(found) == 2:
        rows += _pair(found["decoder"], found["mmproj"])
    return rows


def _pair(decoder: GGUF, mmproj: GGUF) -> Rows:
    rows = Rows("pair")
    gives, takes = mmproj_faults.width(mmproj), decoder_faults.width(decoder)
    if gives != takes:
        cost = "they are of two models, and llama.cpp refuses them together: find the mmproj of this decoder"
        rows.wrong("width", f"rows {gives} wide for a decoder {takes} wide", cost)
    else:
        rows.ok("width", f"both {takes} wide")
    return rows


def _findings(found: Mapping[str, GGUF], rows: Sequence[Row]) -> Findings:
    models = {"decoder": decoder_faults.model, "mmproj": mmproj_faults.model}
    files = {role: f"{file.path.name}, {models[role](file)}" for role, file in found.items()}
    return Findings(files, tuple(row.finding for row in rows))


def _name(role: str, path: Path) -> str:
    """As it was, but that programs find an mmproj by its name."""
    return f"mmproj-{path.name}" if role == "mmproj" and "mmproj" not in path.name else path.name
