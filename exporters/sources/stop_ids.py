"""The token ids that end an answer, from generation_config.json and config.json together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from exporters.sources.checkpoint import read_optional_json

KEY = "eos_token_id"
GENERATION = "generation_config.json"


def read(folder: Path, config: Mapping[str, Any], eos: int | None, rows: int) -> tuple[int, ...]:
    """An answer ends at any of them; what config.json names first closes a turn. `eos` is the tokenizer's, for
    checkpoints whose files name none. Raises CheckpointError where there is none, or one that is no id of `rows`."""
    files = {"config.json": config, GENERATION: read_optional_json(folder / GENERATION)}
    told = [i for name, content in files.items() for i in _ids(name, content.get(KEY), rows)]
    stops = told or [i for i in (eos,) if i is not None]
    if not stops:
        raise CheckpointError("nothing tells which token ends an answer", hint=f"config.json needs an {KEY}")
    if stops[0] >= rows:
        raise CheckpointError(
            f"the tokenizer's eos_token has the id {stops[0]}, and the embedding table has {rows} rows",
            hint=f"config.json needs an {KEY} below {rows}",
        )
    return tuple(dict.fromkeys(stops))


def _ids(file: str, value: Any, rows: int) -> list[int]:
    """One number, a list of them, or null."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if type(i) is not int or not 0 <= i < rows:
            raise CheckpointError(
                f"{KEY} is {repr(value)[:80]} in {file}: {i!r} is no id of a token",
                hint=f"a number, or a list of numbers, from 0 to {rows - 1} (the embedding table has {rows} rows)",
            )
    return ids
