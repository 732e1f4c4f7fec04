from __future__ import annotations

import tracemalloc
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import pairwise
from time import perf_counter, sleep

import numpy as np
import pytest
from conftest import SPEC
from fakes import BYTES, Scripted, byte_tokenizer, picture, words
from grammar_fakes import guide
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ContextError, EdgeError, EngineError, UsageError
from edge.inference.generate import Answer, TextGenerator
from edge.inference.guide import Guide
from edge.inference.sampling import Sampling
from edge.inference.stop import StopFilter
from edge.inputs.tokenizer import Tokenizer
from edge.types import Array, Embeddings, Segment, Tokens

TOKENIZER = Tokenizer(byte_tokenizer())
END = 2
PROMPT: list[Segment] = [words("ab"), picture(1), words("cde")]
LENGTH = 2 + 4 + 3


def ids(text: str) -> list[int]:
    return [BYTES + b for b in text.encode()]


def generator(decoder: Scripted, *, stops: Sequence[str] = (), context: int = 1000) -> TextGenerator:
    prompt = replace(SPEC.prompt, stop_ids=(END,), stop_strings=tuple(stops))
    return TextGenerator(decoder, prompt, TOKENIZER, context, lambda: None)


def begin(
    made: TextGenerator, prompt: Sequence[Segment] = PROMPT, *, max_tokens: int = 100, sampling: Sampling | None = None
) -> Generator[str, None, Answer]:
    return made.stream(prompt, max_tokens=max_tokens, sampling=sampling or Sampling(), started=perf_counter())


def read(stream: Generator[str, None, Answer]) -> tuple[list[str], Answer]:
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            answer: Answer = end.value
            assert "".join(pieces) == answer.text
            assert "" not in pieces
            return pieces, answer


def test_an_answer_that_the_model_ends() -> None:
    decoder = Scripted([*ids("a red cat"), END])
    pieces, answer = read(begin(generator(decoder)))
    assert pieces == list("a red cat")
    assert answer.token_ids == tuple(ids("a red cat"))
    assert (answer.stop_reason, answer.generated_tokens) == ("stop", 9)
    assert (answer.prompt_tokens, answer.image_tokens, answer.cached_tokens) == (LENGTH, 4, 0)
    assert decoder.fed == [LENGTH] + [1] * 9, "the end is heard, and not fed"


def test_the_greedy_choice_copies_no_logits() -> None:
    """A vocabulary of numbers is looked at where the decoder left it, and so does `on_token` see it."""
    said, vocab = ids("red"), 150_000
    rows = [np.random.default_rng(seed).random(vocab, np.float32) for seed in range(len(said))]
    for row, token in zip(rows, said, strict=True):
        row[token] = 2

    class Wide(Scripted):
        def extend(self, segments: Sequence[Segment]) -> Array:
            super().extend(segments)
            return rows[len(self.fed) - 1]

    seen: list[Array] = []
    made = generator(Wide(said))
    stream = made.stream(
        PROMPT,
        max_tokens=len(said),
        sampling=Sampling(),
        started=perf_counter(),
        on_token=lambda token, logits: seen.append(logits),
    )
    tracemalloc.start()
    try:
        _, answer = read(stream)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.token_ids == tuple(said)
    assert [row is logits for row, logits in zip(rows, seen, strict=True)] == [True] * len(said)
    assert most < rows[0].nbytes / 4


def test_an_empty_answer() -> None:
    pieces, answer = read(begin(generator(Scripted([END]))))
    assert (pieces, answer.text, answer.token_ids, answer.stop_reason) == ([], "", (), "stop")
    assert answer.timings.decode_tok_s == 0


def test_an_answer_that_is_cut_off() -> None:
    decoder = Scripted(ids("a long story"))
    _, answer = read(begin(generator(decoder), max_tokens=6))
    assert (answer.text, answer.stop_reason, answer.generated_tokens) == ("a long", "length", 6)
    assert decoder.fed == [LENGTH] + [1] * 5, "the last token is not fed: nothing follows it"


@pytest.mark.parametrize("own", [True, False], ids=["the session's bound", "the decoder's own bound"])
def test_an_answer_that_fills_the_context(own: bool) -> None:
    decoder = Scripted(ids("a long story"), context=1000 if own else LENGTH + 3)
    _, answer = read(begin(generator(decoder, context=LENGTH + 3 if own else 1000)))
    assert (answer.text, answer.stop_reason) == ("a lo", "context")
    assert decoder.position == LENGTH + 3


def test_a_prompt_as_long_as_the_context_gets_one_token() -> None:
    _, answer = read(begin(generator(Scripted(ids("yes")), context=LENGTH)))
    assert (answer.text, answer.stop_reason) == ("y", "context")


def test_a_prompt_that_does_not_fit() -> None:
    decoder = Scripted(ids("yes"))
    made = generator(decoder, context=LENGTH - 1)
    with pytest.raises(ContextError, match=f"the prompt needs {LENGTH} positions, and the context holds {LENGTH - 1}"):
        read(begin(made))
    assert decoder.fed == []
    assert read(begin(made, [words("hi")]))[1].text == "yes"


@pytest.mark.parametrize(("prompt", "most"), [([], 10), (PROMPT, 0), (PROMPT, -3)])
def test_what_cannot_be_asked(prompt: list[Segment], most: int) -> None:
    with pytest.raises(UsageError):
        read(begin(generator(Scripted([])), prompt, max_tokens=most))


def test_the_repeat_penalty_sees_prompt_and_answer() -> None:
    seen: list[list[int]] = []

    class Spy(Scripted):
        def extend(self, segments: Sequence[Segment]) -> np.ndarray:
            return super().extend(segments) * 10

    decoder = Spy([*ids("aa"), END])
    made = generator(decoder)
    real = Sampling(repeat_penalty=100.0)
    # "a" was in the prompt: a hundredth of its logit is still the best, as all others are 0.
    _, answer = read(begin(made, [words("a")], sampling=real))
    seen.append(list(answer.token_ids))
    assert seen == [ids("aa")]


def test_characters_are_never_cut() -> None:
    pieces, answer = read(begin(generator(Scripted([*ids("né 😀"), END]))))
    assert pieces == ["n", "é", " ", "😀"]
    assert answer.text == "né 😀"


def test_bytes_that_never_became_a_character() -> None:
    pieces, _ = read(begin(generator(Scripted([*ids("ok"), BYTES + 0xF0, END]))))
    assert pieces == ["o", "k", "\ufffd"]


def test_stops_of_one_answer_stand_beside_the_models_own() -> None:
    for stop, said in (("red", "a "), ("cat", "a ")):
        made = generator(Scripted([*ids("a red cat"), END]), stops=["red"])
        stream = made.stream(PROMPT, max_tokens=99, sampling=Sampling(), started=perf_counter(), stop=[stop])
        assert read(stream)[1].text == said
    made = generator(Scripted([*ids("a red cat"), END, *ids("a cat"), END]))
    stream = made.stream(PROMPT, max_tokens=99, sampling=Sampling(), started=perf_counter(), stop=["red"])
    assert read(stream)[1].text == "a "


def test_each_token_is_told_with_its_logits_and_may_end_the_answer() -> None:
    told: list[int] = []

    def on_token(token: int, logits: Array) -> None:
        assert token == int(np.argmax(logits))
        told.append(token)
        if len(told) == 3:
            raise KeyError("gone")

    decoder = Scripted([*ids("a red cat"), END])
    made = generator(decoder)
    stream = made.stream(PROMPT, max_tokens=99, sampling=Sampling(), started=perf_counter(), on_token=on_token)
    assert [next(stream), next(stream)] == ["a", " "]
    with pytest.raises(KeyError, match="gone"):
        next(stream)
    assert told == ids("a r")
    assert decoder.position == LENGTH + 2
    decoder.says = [*ids("b"), END]
    assert read(begin(made))[1].text == "b"


def test_a_stop_string_across_tokens() -> None:
    decoder = Scripted(ids("so </ b></s> more"))
    pieces, answer = read(begin(generator(decoder, stops=["</s>"])))
    assert (answer.text, answer.stop_reason) == ("so </ b>", "stop")
    assert "</ " in pieces, "held back while it might become one"
    assert answer.token_ids == tuple(ids("so </ b></s>"))


def test_what_was_held_back_is_let_out_at_the_end() -> None:
    pieces, answer = read(begin(generator(Scripted([*ids("a </"), END]), stops=["</s>"])))
    assert (pieces, answer.text) == (["a", " ", "</"], "a </")


def test_timings_leave_out_the_callers_own_time() -> None:
    stream = begin(generator(Scripted([*ids("abc"), END])))
    pieces = [next(stream)]
    sleep(0.2)
    rest, answer = [], None
    while answer is None:
        try:
            rest.append(next(stream))
        except StopIteration as end:
            answer = end.value
    assert pieces + rest == list("abc")
    times = answer.timings
    assert times.decode_ms < 100
    assert 0 < times.prefill_ms <= times.ttft_ms < 100
    assert times.decode_tok_s == pytest.approx(3 / times.decode_ms * 1e3)


# held to a constraint

WORDS = ["no", "yes", "yet another"]


def held() -> Guide:
    return guide(WORDS, [TOKENIZER.spelling(i) for i in range(259)], [END])


@pytest.mark.parametrize(
    ("says", "most", "text", "reason"),
    [
        ("yes", 9, "yes", "stop"),
        ("yes", 3, "yes", "stop"),
        ("xxx", 9, "no", "stop"),
        ("yet", 2, "no", "length"),
        ("yet an", 8, "yes", "length"),
        ("yet another", 11, "yet another", "stop"),
    ],
)
def test_an_answer_that_is_held_to_words(says: str, most: int, text: str, reason: str) -> None:
    decoder = Scripted(ids(says))
    stream = generator(decoder, stops=["e", "no"]).stream(
        PROMPT, max_tokens=most, sampling=Sampling(), started=perf_counter(), guide=held()
    )
    _, answer = read(stream)
    assert (answer.text, answer.stop_reason) == (text, reason)
    assert decoder.fed == [LENGTH] + [1] * (len(text) - 1), "its end is not asked for, where nothing can follow"


def test_an_answer_that_is_held_to_words_ends_before_the_context() -> None:
    made = generator(Scripted(ids("yet another")), context=LENGTH + 2)
    _, answer = read(made.stream(PROMPT, max_tokens=50, sampling=Sampling(), started=perf_counter(), guide=held()))
    assert (answer.text, answer.stop_reason) == ("yes", "context")


def test_no_text_ends_an_answer_that_is_held_to_words() -> None:
    decoder = Scripted(ids("yes"))
    stream = generator(decoder).stream(
        PROMPT, max_tokens=9, sampling=Sampling(), started=perf_counter(), guide=held(), stop=["e"]
    )
    with pytest.raises(UsageError, match="an answer of a choice ends by itself"):
        next(stream)
    assert decoder.fed == []


def test_no_room_for_any_of_the_words_is_told_before_anything_is_computed() -> None:
    decoder = Scripted([])
    for context, most, error, message in (
        (1000, 1, UsageError, "max_tokens is 1, and an answer of this choice takes 2 or more"),
        (LENGTH, 50, ContextError, f"needs {LENGTH + 1} positions, and the context holds {LENGTH}"),
    ):
        stream = generator(decoder, context=context).stream(
            PROMPT, max_tokens=most, sampling=Sampling(), started=perf_counter(), guide=held()
        )
        with pytest.raises(error, match=message):
            next(stream)
    assert decoder.fed == []


# what the decoder remembers


def test_a_common_prefix_is_not_computed_again() -> None:
    decoder = Scripted([*ids("x"), END, *ids("y"), END])
    made = generator(decoder)
    read(begin(made))
    other: list[Segment] = [words("ab"), picture(1), words("cdX!")]
    _, answer = read(begin(made, other))
    assert answer.cached_tokens == LENGTH - 1
    assert decoder.fed == [LENGTH, 1, 2, 1]
    assert answer.prompt_tokens == LENGTH + 1


def test_the_same_prompt_computes_its_last_position() -> None:
    decoder = Scripted([END, *ids("y"), END])
    made = generator(decoder)
    read(begin(made))
    assert read(begin(made))[1].text == "y"
    assert decoder.fed == [LENGTH, 1, 1]


def test_what_was_generated_is_part_of_the_prefix() -> None:
    decoder = Scripted([*ids("red"), END, END])
    made = generator(decoder)
    read(begin(made))
    read(begin(made, [*PROMPT, words("red"), Tokens((END,)), words("and?")]))
    assert decoder.fed == [LENGTH, 1, 1, 1, 5]


def test_another_picture_in_the_same_place_is_computed() -> None:
    decoder = Scripted([END, END])
    made = generator(decoder)
    read(begin(made))
    read(begin(made, [words("ab"), picture(2), words("cde")]))
    assert decoder.fed == [LENGTH, LENGTH - 2]


def test_a_prefix_that_ends_within_a_picture() -> None:
    class Keeps(Scripted):
        def extend(self, segments: Sequence[Segment]) -> np.ndarray:
            self.segments = list(segments)
            return super().extend(segments)

    decoder = Keeps([END, END])
    made = generator(decoder)
    whole = picture(1)
    read(begin(made, [words("ab"), whole]))
    read(begin(made, [words("ab"), whole]))
    (rest,) = decoder.segments
    assert isinstance(rest, Embeddings)
    np.testing.assert_array_equal(rest.rows, whole.rows[3:])
    assert (rest.key, rest.first) == (whole.key, 3)


# snapshots


def test_a_snapshot_brings_back_what_another_question_took() -> None:
    decoder = Scripted([*ids("one"), END, *ids("two"), END, *ids("six"), END])
    made = generator(decoder)
    _, first = read(begin(made))
    kept = made.snapshot()
    assert kept is not None
    assert (len(kept.held), kept.nbytes) == (LENGTH + 3, LENGTH + 3)
    longer = [*PROMPT[:2], Tokens((*words("cde").ids, *first.token_ids, *words("?").ids))]
    assert kept.common(longer) == LENGTH + 3
    read(begin(made, [words("another")]))
    assert kept.common([words("another")]) == 1
    made.restore(kept)
    _, answer = read(begin(made, longer))
    assert (answer.text, answer.cached_tokens) == ("six", LENGTH + 3)


def test_a_snapshot_ends_an_answer_on_its_way() -> None:
    made = generator(Scripted(ids("a long story")))
    kept = made.snapshot()
    assert kept is not None
    stream = begin(made)
    next(stream)
    made.restore(kept)
    with pytest.raises(UsageError, match="another question was asked"):
        next(stream)


def test_a_snapshot_of_a_decoder_that_somebody_else_extended() -> None:
    decoder = Scripted([*ids("one"), END])
    made = generator(decoder)
    read(begin(made))
    made.release().extend([words("more")])
    kept = made.snapshot()
    assert kept is not None
    assert (kept.held, kept.snapshot.position) == ((), 0)


def test_a_decoder_that_keeps_its_cache_out_of_reach() -> None:
    decoder = Scripted([END])
    decoder.layout = None
    assert generator(decoder).snapshot() is None


def test_a_snapshot_that_the_decoder_does_not_take() -> None:
    decoder = Scripted([*ids("one"), END, *ids("two"), END])
    made = generator(decoder)
    read(begin(made))
    kept = made.snapshot()
    assert kept is not None
    decoder.layout = "another"
    with pytest.raises(EngineError):
        made.restore(kept)
    _, answer = read(begin(made))
    assert (answer.text, answer.cached_tokens) == ("two", 0)


# what goes wrong


def test_an_abandoned_answer() -> None:
    decoder = Scripted([*ids("abc"), *ids("y"), END])
    made = generator(decoder)
    stream = begin(made)
    assert next(stream) == "a"
    assert next(stream) == "b"
    stream.close()
    decoder.says = [*ids("y"), END]
    _, answer = read(begin(made))
    assert (answer.text, answer.cached_tokens) == ("y", LENGTH - 1)


def test_two_answers_at_once() -> None:
    made = generator(Scripted(ids("abcdef")))
    first = begin(made)
    next(first)
    second = begin(made)
    next(second)
    with pytest.raises(UsageError, match="before this answer ended"):
        next(first)
    assert next(second)


def test_a_decoder_that_fails_in_the_middle() -> None:
    decoder = Scripted([*ids("abc"), END])
    made = generator(decoder)
    stream = begin(made)
    next(stream)
    decoder.fail = True
    with pytest.raises(EngineError, match="the decoder failed"):
        next(stream)
    with pytest.raises(EngineError, match="the decoder failed"):
        read(begin(made))
    decoder.fail = False
    decoder.says = [*ids("y"), END]
    assert read(begin(made))[1].text == "y"
    assert decoder.position == LENGTH + 1


def test_a_decoder_that_lost_everything() -> None:
    decoder = Scripted([*ids("x"), END, *ids("y"), END])
    made = generator(decoder)
    read(begin(made))
    decoder.position = 0
    _, answer = read(begin(made))
    assert (answer.text, answer.cached_tokens, decoder.position) == ("y", 0, LENGTH + 1)


def test_logits_that_are_no_numbers() -> None:
    class Broken(Scripted):
        def extend(self, segments: Sequence[Segment]) -> np.ndarray:
            return super().extend(segments) * np.float32("nan")

    with pytest.raises(EngineError, match="nan"):
        read(begin(generator(Broken(ids("a")))))


def test_nothing_is_let_out_before_it_is_ready() -> None:
    def damaged() -> None:
        raise EdgeError("the bundle is damaged")

    made = TextGenerator(Scripted(ids("abc")), SPEC.prompt, TOKENIZER, 100, damaged)
    with pytest.raises(EdgeError, match="the bundle is damaged"):
        next(begin(made))


def test_a_released_decoder_is_not_trusted() -> None:
    decoder = Scripted([*ids("x"), END, *ids("y"), END])
    made = generator(decoder)
    stream = begin(made)
    next(stream)
    assert made.release() is decoder
    decoder.rewind(1)  # and then something else may stand there
    with pytest.raises(UsageError):
        next(stream)
    decoder.says = [*ids("y"), END]
    assert read(begin(made))[1].cached_tokens == 0


# stop strings, however the text is cut

LETTERS = "ab<"


def first_stop(text: str, stops: Sequence[str]) -> str:
    """Up to the stop string that is complete first; of several, the longest."""
    for end in range(len(text) + 1):
        ending = [s for s in stops if s and text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(
    text=st.text(LETTERS, max_size=14),
    stops=st.lists(st.text(LETTERS, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 14), max_size=6),
)
def test_the_pieces_do_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    held = StopFilter(stops)
    out = "".join(held.push(text[a:b]) for a, b in pairwise(edges))
    expected = first_stop(text, stops)
    assert expected.startswith(out), "nothing is let out that would have to be taken back"
    assert out + held.finish() == expected
    assert held.stopped == any(s in text for s in stops if s)


@given(
    said=st.lists(st.sampled_from(["a", "b", "<", "é", "😀", "</s>"]), max_size=8),
    stops=st.lists(st.sampled_from(["</s>", "<", "a<", "é", "😀b"]), max_size=2),
)
def test_stop_strings_across_the_borders_of_tokens(said: list[str], stops: list[str]) -> None:
    text = "".join(said)
    pieces, answer = read(begin(generator(Scripted([*ids(text), END]), stops=stops)))
    assert "".join(pieces) == first_stop(text, stops)
    assert answer.stop_reason == "stop"
