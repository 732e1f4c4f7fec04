from __future__ import annotations

import numpy as np
import pytest
from fakes import DECODER, FIXED, GROWING, decoder_tensors

from edge.engines import open_part
from edge.errors import EngineError
from edge.types import Array, Decoder, Graph, OpenOptions, PartFiles, TensorSpec, Tokens
from runtimes import null


def opened(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Graph:
    graph = open_part(PartFiles("any", "fp32", ("decoder",), (), inputs, outputs), "null", OpenOptions(1, 64))
    assert not isinstance(graph, Decoder)
    assert (graph.inputs, graph.outputs) == (inputs, outputs)
    return graph


def feeds(last: float, total: int, past: int, count: int = 1) -> dict[str, Array]:
    inputs, _ = decoder_tensors(DECODER, GROWING)
    sizes = {"sequence_length": count, "total_sequence_length": total, "past_sequence_length": past}
    made = {t.name: np.zeros([sizes.get(str(d), d) for d in t.shape], t.dtype) for t in inputs}
    made["inputs_embeds"][0, -1] = last
    return made


def test_named_axes_follow_from_the_feeds() -> None:
    found = opened(*decoder_tensors(DECODER, GROWING)).run(feeds(1, 9, 6, count=3))
    assert found["logits"].shape == (1, 1, DECODER.vocab)
    assert found["present.1.value"].shape == (1, 2, 9, 8)
    assert {a.dtype for a in found.values()} == {np.dtype("float32")}


def test_an_axis_that_nothing_names_is_one_long() -> None:
    graph = opened((TensorSpec("x", "float32", (1, 4)),), (TensorSpec("y", "int64", ("anything", 3)),))
    found = graph.run({"x": np.zeros((1, 4), np.float32)})["y"]
    assert (found.shape, found.dtype) == ((1, 3), np.int64)


def test_the_numbers_follow_from_the_last_row_and_the_length() -> None:
    graph = opened(*decoder_tensors(DECODER, GROWING))

    def logits(*arguments: int) -> list[float]:
        return list(graph.run(feeds(*arguments))["logits"][0, 0])

    assert logits(1, 9, 8) == logits(1, 9, 8) == logits(1, 9, 5, 4)
    assert logits(1, 9, 8) != logits(2, 9, 8)
    assert logits(1, 9, 8) != logits(1, 10, 9)
    assert len({int(np.argmax(logits(1, n, n - 1))) for n in range(1, 30)}) > 5, "a model that says different things"


def test_arrays_are_written_where_they_should_go() -> None:
    graph = opened(*decoder_tensors(DECODER, FIXED))
    given = feeds(1, 9, 16)
    into = {t.name: given[t.name.replace("present", "past_key_values")] for t in graph.outputs[1:]}
    target = into["logits"] = np.zeros((1, 1, DECODER.vocab), np.float32)
    found = graph.run(given, into)
    assert found.keys() == into.keys()
    assert found["logits"] is target
    assert target.any()
    assert not found["present.0.key"].any(), "a cache that is updated in place stays as it is"


def test_an_output_larger_than_the_pool() -> None:
    graph = opened((TensorSpec("x", "float32", (2, 4)),), (TensorSpec("y", "float32", (3, null._POOL)),))
    found = graph.run({"x": np.ones((2, 4), np.float32)})["y"]
    assert found.std() == pytest.approx(1, abs=0.02)


def test_what_it_is_fed() -> None:
    graph = opened((TensorSpec("x", "float32", (2, 4)),), (TensorSpec("y", "float32", (3,)),))
    with pytest.raises(EngineError, match="was fed nothing"):
        graph.run({})
    assert null.version() == np.__version__


STATEFUL = (
    TensorSpec("inputs_embeds", "float32", (1, "sequence_length", DECODER.hidden)),
    TensorSpec("causal_mask", "float32", (1, 1, "sequence_length", "total_sequence_length")),
)


@pytest.mark.parametrize("inputs", [(), STATEFUL])
def test_a_part_that_declares_no_cache_is_a_decoder_by_itself(inputs: tuple[TensorSpec, ...]) -> None:
    part = PartFiles("any", "q4", ("decoder",), (), inputs, (), decoder=DECODER)
    decoder = open_part(part, "null", OpenOptions(1, 64))
    assert isinstance(decoder, Decoder)
    first = decoder.extend([Tokens((1, 2)), Tokens((3,))]).copy()
    assert (first.shape, first.dtype, decoder.position) == ((DECODER.vocab,), np.dtype("float32"), 3)
    assert not np.array_equal(decoder.extend([Tokens((4,))]), first)
    decoder.rewind(2)
    np.testing.assert_array_equal(decoder.extend([Tokens((9,))]), first)
    with pytest.raises(EngineError, match="cannot rewind to 4 from 3"):
        decoder.rewind(4)
    kept = decoder.snapshot()
    second = decoder.extend([Tokens((9,))]).copy()
    decoder.restore(kept)
    np.testing.assert_array_equal(decoder.extend([Tokens((9,))]), second)
