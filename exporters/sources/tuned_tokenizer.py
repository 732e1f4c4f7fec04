"""The tokenizer that lies beside an adapter: the base's is taken, so the two must agree."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import tokenizers

from edge.errors import CheckpointError
from exporters.sources import added_tokens
from exporters.sources.lora_config import MERGE

TEMPLATE = "chat_template.jinja"


def require_same(folder: Path, base: Callable[[], str], rows: int) -> None:
    """`base` gives the text of its tokenizer.json. Raises CheckpointError where a token of the adapter's, of those that
    the embedding table has a row for, is another there or missing."""
    if not (listed := added_tokens.read(folder).tokens):
        return
    known = tokenizers.Tokenizer.from_str(base())
    for i, token in listed.items():
        if i < rows and (there := known.token_to_id(token.content)) != i:
            told = "does not have" if there is None else f"has as {there}"
            raise CheckpointError(
                f"the tokenizer beside the adapter adds {token.content!r} as {i}, which the base's {told}",
                hint=f"is it the right base? Else {MERGE}",
            )


def notes(folder: Path, templates: Collection[str]) -> tuple[str, ...]:
    """For the user, where the adapter's chat template is none of the base's."""
    own = added_tokens.read_table(folder / added_tokens.CONFIG).get("chat_template")
    file, place = folder / TEMPLATE, added_tokens.CONFIG
    if file.is_file():
        own, place = file.read_text(encoding="utf-8", errors="replace"), TEMPLATE
    if not own or own in templates:
        return ()
    return (f"the adapter's own chat template ({place}) is not taken: --prompt FILE.jinja takes it",)
