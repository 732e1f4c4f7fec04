"""The study of the importance matrix measures what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.inputs import calibration
from exporters import reference
from exporters.demo import imatrix_study as study
from exporters.demo.agreement import CHECKPOINT
from exporters.demo.heldout import items
from exporters.pipeline import components, own_tokenizer
from exporters.sources.checkpoint import open_checkpoint

COUNT = 8


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(str(CHECKPOINT))


@pytest.fixture(scope="module")
def found(checkpoint, exports):
    return study.study(checkpoint, exports.calibration, ["q4_0"], COUNT)


@pytest.fixture(scope="module")
def models(checkpoint):
    return [component.load(checkpoint.weights) for component in components(checkpoint)]


def test_what_is_expected_is_question_and_answer(checkpoint, models):
    """Each id from the position before it, the first of them from the picture's last row."""
    encoder, decoder = models
    tokenizer = own_tokenizer(checkpoint)
    (item,), (conversation,) = items(1), study.heldout(checkpoint, encoder, 1)
    *answer, end = conversation.targets[-conversation.answer :].tolist()
    assert tokenizer.decode(answer).strip() == item.answer
    assert end == checkpoint.spec.prompt.end_id
    before, picture, after = conversation.segments
    assert conversation.targets.tolist() == list(after.ids)
    found = study.predictions(decoder, conversation)
    for place in (0, len(after) - 1):
        prefix = [before.ids, None, *([after.ids[:place]] if place else [])]
        logits, _ = reference.answer(decoder, prefix, picture.rows[None], 1)
        torch.testing.assert_close(found[place], torch.from_numpy(logits).log_softmax(-1), atol=1e-4, rtol=0)


def test_the_checkpoints_own_weights_lose_nothing(found):
    (own,) = found["fp32"].values()
    assert np.abs(own.kl).max() < 1e-6
    assert own.exact.tolist() == [1.0] * COUNT  # it answers these right
    assert 1 < own.perplexity < 1.05


def test_rounding_is_seen_and_takes_the_same_bytes(found):
    scores = found["q4_0"]
    assert len({one.bytes for one in scores.values()}) == 1
    assert all((one.kl > 0).all() for one in scores.values())
    # What matters does move the rounding.
    assert len({one.mean_kl(0) for one in scores.values()}) == len(scores) == 3


def test_text_statistics_know_no_picture(checkpoint, models, exports):
    encoder, decoder = models
    found = study.statistics(checkpoint, encoder, decoder, exports.calibration)
    tokenizer, records = own_tokenizer(checkpoint), calibration.read(exports.calibration)
    ids = []
    for record in records:
        before = f"{checkpoint.spec.prompt.default_system} USER: "
        after = f"\n{record.question} ASSISTANT: {record.answer}"
        ids += [1, *tokenizer.encode(before), *tokenizer.encode(after), 2]
    normed = decoder.layers[0].input_layernorm(decoder.embed_tokens(torch.tensor(ids)))
    torch.testing.assert_close(found["text"]["layers.0.qkv_proj.weight"], normed.square().mean(0))
    assert not torch.allclose(found["image + text"]["layers.0.qkv_proj.weight"], normed.square().mean(0), rtol=0.1)
    assert found["none"] == {}


def test_comparisons_hold_the_questions_against_each_other(found):
    one = found["q4_0"]["none"]
    assert study.ratio(one, one, 0) == "1.00 (1.00 – 1.00)"
    twice = study.Score(one.bytes, one.nll, 2 * one.kl, one.positions, one.exact)
    assert study.ratio(twice, one, 1) == "2.00 (2.00 – 2.00)"
    assert (study.nearer(one, twice), study.nearer(twice, one), study.nearer(one, one)) == ("100 %", "0 %", "0 %")
    told = study.tables(found)
    assert "| q4_0 | image + text | 1796864 | " in told
    assert "| q4_0 | / text | " in told
