"""Results of `edge bench` as one page that opens anywhere: no script, no network, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge.bench.schema import Row
from edge.devices import whole_files
from edge.errors import EdgeError
from exporters.report.page import page
from exporters.report.runs import gather


def write(results: Mapping[str, Sequence[Row]], output: Path, bandwidth: float | None = None) -> None:
    """`results`: file name -> its rows. `bandwidth`: of the memory, in bytes per second, where the rows do not say.
    Raises EdgeError when the page cannot be written."""
    text = page(gather(results, bandwidth))
    try:
        with whole_files.aside(output) as beside:
            beside.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise EdgeError(
            f"cannot write {output}: {error.strerror}", hint="check the path, and the room there"
        ) from error
