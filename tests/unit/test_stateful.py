"""A decoder over functions that share a state: what it feeds them, and how far it goes."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import DECODER, embedding_files, picture

from edge.decoders.embedding_table import EmbeddingTable
from edge.decoders.stateful import DECODE, MASKED, PREFILL, StatefulDecoder
from edge.errors import ContextError, EngineError
from edge.types import Tokens


class Model:
    """Remembers what it was fed, and can fail."""

    def __init__(self):
        self.fed = []
        self.fail = False

    def run(self, function, feeds):
        if self.fail:
            raise EngineError("no")
        self.fed.append((function, feeds["inputs_embeds"].copy(), feeds["causal_mask"].copy()))
        return np.full((1, 1, DECODER.vocab), float(len(self.fed)), np.float16)


@pytest.fixture
def made(tmp_path):
    table = EmbeddingTable.open(embedding_files(tmp_path, DECODER), DECODER.vocab, DECODER.hidden)
    model = Model()
    return model, StatefulDecoder(model, table, 12), np.load(tmp_path / "embed_tokens.npy")


def test_rows_and_masks(made):
    model, decoder, table = made
    seen = picture(1, DECODER.hidden, 3)
    logits = decoder.extend([Tokens((5, 6)), seen, Tokens(())])
    assert logits.dtype == np.float32 and logits.shape == (DECODER.vocab,) and decoder.position == 5
    function, rows, mask = model.fed[0]
    assert function == PREFILL
    np.testing.assert_array_equal(rows[0], np.concatenate([table[[5, 6]], seen.rows]))
    assert mask.shape == (1, 1, 5, 5)
    np.testing.assert_array_equal(mask[0, 0] == 0, np.tril(np.ones((5, 5), bool)))
    assert mask.min() == MASKED
    decoder.extend([Tokens((7,))])
    assert model.fed[1][0] == DECODE
    np.testing.assert_array_equal(model.fed[1][2], np.zeros((1, 1, 1, 6)))
    decoder.rewind(4)
    decoder.extend([Tokens((1, 2, 3))])
    np.testing.assert_array_equal(model.fed[2][2][0, 0] == 0, np.tril(np.ones((7, 7), bool))[4:])
    assert decoder.position == 7


def test_what_is_refused_changes_nothing(made):
    model, decoder, _ = made
    decoder.extend([Tokens((1, 2))])
    with pytest.raises(ContextError, match="needs 13 positions, and the context holds 12"):
        decoder.extend([Tokens((1,) * 11)])
    with pytest.raises(EngineError, match="extended by nothing"):
        decoder.extend([Tokens(())])
    with pytest.raises(EngineError, match="cannot rewind to 3 from 2"):
        decoder.rewind(3)
    with pytest.raises(EngineError, match="for a decoder of width"):
        decoder.extend([picture(1, DECODER.hidden + 1)])
    with pytest.raises(EngineError, match="outside the vocabulary"):
        decoder.extend([Tokens((DECODER.vocab,))])
    model.fail = True
    with pytest.raises(EngineError):
        decoder.extend([Tokens((1,))])
    assert decoder.position == 2


def test_its_cache_is_out_of_reach(made):
    _, decoder, _ = made
    assert decoder.layout is None
    with pytest.raises(EngineError, match="a StatefulDecoder keeps its KV cache out of reach"):
        decoder.snapshot()
