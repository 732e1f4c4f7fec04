"""The two layouts of the command line's tables: columns under a head, and facts by their name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    found = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        found.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return found


def facts(known: Mapping[str, str]) -> Table:
    found = Table.grid(padding=(0, 2))
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")
    for name, value in known.items():
        found.add_row(name, value)
    return found
