"""The check of a decoder that is kept as it was published: sizes are the manifest's, settings are sound numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_fakes import SPEC, decoder_bytes

from edge.errors import BundleError
from edge.formats.gguf import GGUF, read
from edge.formats.gguf_adopted import check_adopted


def written(folder: Path, **changes: Any) -> GGUF:
    path = folder / "model.gguf"
    path.write_bytes(decoder_bytes(**changes))
    return read(path)


def test_what_an_architecture_sets_beyond_its_sizes_is_its_own_business(tmp_path: Path) -> None:
    more = {"llama.expert_count": 4, "llama.pooling": "mean", "llama.layers": [1, 2], "llama.flag": True}
    check_adopted(written(tmp_path, settings=more), SPEC)
    check_adopted(written(tmp_path), replace(SPEC, context=SPEC.context - 1))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"llama.block_count": 3}, "block_count is 3, expected 2"),
        ({"llama.block_count": True}, "block_count is True"),
        ({"llama.embedding_length": 32}, "embedding_length is 32"),
        ({"llama.context_length": 9}, "context_length is 9"),
        ({"llama.vocab_size": 97}, "vocab_size is 97"),
        ({"llama.rope.freq_base": float("nan")}, "freq_base is nan"),
        ({"llama.rope.freq_base": float("inf")}, "freq_base is inf"),
        ({"llama.expert_count": 1 << 31}, "expert_count is 2147483648"),
        ({"llama.pooling": "m" * 257}, "pooling is 'mmm"),
        ({"split.count": 2}, "one of several files"),
    ],
)
def test_what_is_not_the_decoder_of_the_manifest_is_refused(
    settings: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=match):
        check_adopted(written(tmp_path, settings=settings), SPEC)


def test_a_table_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"token_embd\.weight is \[64, 96\], expected \[64, 97\]"):
        check_adopted(written(tmp_path), replace(SPEC, vocab=97))
