"""The reference's answer is that of one token at a time, whatever it was guessed to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporters import reference
from exporters.models.attention import GrowingCache
from exporters.models.decoders import llama

PROMPT = [[1, 2, 3], None, [4, 5]]
COUNT = 8


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(3)
    return llama.tiny().requires_grad_(False)


@pytest.fixture(scope="module")
def rows():
    return torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(4)).numpy()


@pytest.fixture(scope="module")
def expected(decoder, rows):
    """Each token from the whole text before it, without any cache."""
    table = decoder.embed_tokens.weight
    seen = torch.cat([table[PROMPT[0]], torch.from_numpy(rows[0]), table[PROMPT[2]]])
    tokens, first = [], None
    for _ in range(COUNT):
        logits = decoder(seen[None], GrowingCache(4, 2, decoder.config.rope))[0, -1]
        first = logits if first is None else first
        tokens.append(int(logits.argmax()))
        seen = torch.cat([seen, table[tokens[-1:]]])
    return first.numpy(), tokens


@pytest.mark.parametrize("right", range(COUNT + 1))
@pytest.mark.parametrize("length", [COUNT - 3, COUNT, COUNT + 3])
def test_a_guess_changes_nothing(decoder, rows, expected, right, length):
    wrong = [(token + 1) % decoder.config.vocab for token in [*expected[1], *expected[1]]]
    first, tokens = reference.answer(decoder, PROMPT, rows, COUNT, [*expected[1][:right], *wrong][:length])
    assert tokens.tolist() == expected[1]
    assert np.abs(first - expected[0]).max() < 1e-5


def test_a_right_guess_takes_one_pass(decoder, rows, expected, monkeypatch):
    lengths = []
    forward = decoder.forward

    def counted(x, *args, **more):
        lengths.append(x.shape[1])
        return forward(x, *args, **more)

    monkeypatch.setattr(decoder, "forward", counted)
    reference.answer(decoder, PROMPT, rows, COUNT, expected[1])
    assert lengths == [11, COUNT]
