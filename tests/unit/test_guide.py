"""A guide over words: what it lets through, and how an answer ends in time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from grammar_fakes import Words, guide
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EngineError, UsageError
from edge.inference.closing import JsonState, closing
from edge.inference.guide import GuidedSampler, Pieces
from edge.inference.sampling import Sampler, Sampling

END = 0
PIECES = [b"", *(bytes((byte,)) for byte in range(1, 128)), b"yes", b"ye", b"no", b"not ", b'{"', b'":', "é".encode()]
PIECES += [bytes((byte,)) for byte in range(128, 256)]
words = st.lists(st.text("yesnot é", min_size=1, max_size=12), min_size=1, max_size=5)


def said(found: list[str], likes: str, most: int, temperature: float = 0.0, seed: int = 0) -> tuple[str, bool, int]:
    """What a model that likes some letters says: text, whether it was closed, and how many tokens it has."""
    guiding = guide(found, PIECES, [END])
    sampler = GuidedSampler(Sampler(Sampling(temperature, seed=seed)), guiding, {END}, most)
    liking = np.zeros(len(PIECES), np.float32)
    for place, letter in enumerate(likes.encode()):
        liking[letter] = 100 - place
    tokens: list[int] = []
    while len(tokens) < most and not sampler.finished:
        token = sampler.pick(liking, tokens)
        if token is None or token == END:
            break
        tokens.append(token)
    return b"".join(PIECES[token] for token in tokens).decode(), guiding.closed, len(tokens)


@given(found=words, spare=st.integers(0, 20), likes=st.text("yesnot ", max_size=5), seed=st.integers(0, 99))
def test_whatever_is_liked_a_word_is_said_in_time(found: list[str], spare: int, likes: str, seed: int) -> None:
    most = guide(found, PIECES, [END]).needs + spare
    for temperature in (0.0, 50.0):
        text, _, count = said(found, likes, most, temperature, seed)
        assert text in found
        assert count <= most


@given(found=words, seed=st.integers(0, 99))
def test_with_room_for_every_word_nothing_is_forced(found: list[str], seed: int) -> None:
    text, closed, _ = said(found, "", 60, 50.0, seed)
    assert text in found
    assert not closed


@pytest.mark.parametrize(
    ("most", "text", "closed"),
    [(1, "no", True), (2, "no", False), (3, "no", True), (8, "no", True), (9, "note tony", False)],
)
def test_the_longer_word_is_left_when_it_does_not_fit(most: int, text: str, closed: bool) -> None:
    """`n`, `o`, `t`, … are liked one by one: nine tokens."""
    assert said(["no", "note tony"], "note y", most)[:2] == (text, closed)


def test_an_answer_that_may_end_ends_where_the_rest_does_not_fit() -> None:
    assert said(["a", "a long one"], "a long", 3) == ("a", True, 1)


def test_an_end_is_allowed_only_where_the_answer_is_whole() -> None:
    guiding = guide(["yes", "yes, it is"], PIECES, [END])
    assert not guiding.allowed()[END]
    assert {PIECES[token] for token in np.flatnonzero(guiding.allowed())} == {b"y", b"ye", b"yes"}
    assert guiding.take(PIECES.index(b"yes"), 99) == PIECES.index(b"yes")
    assert {PIECES[token] for token in np.flatnonzero(guiding.allowed())} == {b"", b","}
    assert not guiding.finished


def test_the_sampler_sees_only_what_is_allowed() -> None:
    logits = np.array([5, 4, 3, 2, 1], np.float32)
    allowed = np.array([False, False, True, False, True])
    assert Sampler(Sampling()).pick(logits, [], allowed) == 2
    assert Sampler(Sampling(repeat_penalty=9.0)).pick(logits, [2], allowed) == 4
    warm = Sampler(Sampling(temperature=2.0, top_k=4, top_p=0.999, seed=0))
    assert {warm.pick(logits, [], allowed) for _ in range(200)} == {2, 4}
    np.testing.assert_array_equal(logits, [5, 4, 3, 2, 1])


def test_a_number_that_is_none_is_seen_where_it_is_allowed() -> None:
    logits = np.array([np.nan, 1, np.nan], np.float32)
    assert Sampler(Sampling()).pick(logits, [], np.array([False, True, False])) == 1
    with pytest.raises(EngineError, match="the logit nan for token 2"):
        Sampler(Sampling()).pick(logits, [], np.array([False, True, True]))


def test_a_grammar_that_gives_up_is_told() -> None:
    guiding = guide(["yes"], PIECES, [END])
    guiding._tokens.broken = "too complex\nat length"
    with pytest.raises(EngineError, match="the choice became too complex to follow: too complex\n") as caught:
        guiding.allowed()
    assert "docs/run.md" in str(caught.value.hint)


def test_an_answer_that_no_token_spells_is_refused() -> None:
    with pytest.raises(UsageError, match="no answer that satisfies the choice was found"):
        guide(["yes"], [b"", b"y", b"e"], [END])
    with pytest.raises(UsageError, match="no answer"):
        guide([], PIECES, [END])


def test_texts_are_cut_at_the_longest_pieces() -> None:
    cut = Pieces([b"", b"a", b"ab", b"abc", b"c", b"ab"])
    assert cut(b"abcabca") == [3, 3, 1]
    assert cut(b"abab") == [2, 2], "the first of equal ones"
    assert cut(b"") == []
    assert cut(b"abd") is None


# completions


def completion(texts: list[str], said: str = "", json_text: bool = True) -> str | None:
    parser = Words([text.encode() for text in texts], [bytes((byte,)) for byte in range(256)], said.encode())
    found = closing(parser, JsonState().after(said.encode()) if json_text else None)
    return None if found is None else found.decode()


def test_the_least_that_closes_is_chosen() -> None:
    whole = ['{"a": "x", "b": 1}', '{"a": "x"}', '{"a": ""}', '{"a": "", "b": 12}']
    assert completion(whole) == '{"a": ""}'
    assert completion(whole, '{"a": "x') == '"}'
    assert completion(whole, '{"a": "", "b": 1') == "2}"
    assert completion(["[]", "[1]", "[1, 2]"], "[1") == "]"
    assert completion(['"\\""', '"\\n"'], '"\\') in ('""', 'n"')
    assert completion(["null", '"a"', "[]", "true"]) == "null"
    assert completion(["yes"], "yes") == ""


def test_in_a_pattern_it_goes_where_it_has_not_been() -> None:
    """Addresses: one letter after another would never end."""
    letters = "abc"
    users = [a + b + c for a in letters for b in letters for c in letters] + list(letters)
    addresses = [f'"{user}@{host}"' for user in users for host in letters]
    found = completion(addresses)
    assert found in addresses
    assert json.loads(str(found))[1] == "@"


@given(st.recursive(st.none() | st.text(max_size=5) | st.integers(), lambda x: st.lists(x, max_size=3), max_leaves=5))
def test_the_state_follows_the_text(value: object) -> None:
    text = json.dumps([value], ensure_ascii=False).encode()
    state = JsonState()
    for at in range(len(text)):
        state = state.after(text[at : at + 1])
    assert state == JsonState().after(text) == JsonState()
    assert JsonState().after(text[:-1]).depth == 1


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        (r'"\\n\"\\\u0001\u001F\u007f"', True),
        (r'"u0061 \\u0061"', True),
        (r'"\u0061"', False),
        (r'"\u00e9"', False),
        (r'"\ud83d\ude00"', False),
        (r'"\/"', False),
    ],
)
def test_a_character_is_spelled_in_one_way(text: str, sound: bool) -> None:
    """`\\u0061` would be the `a` that a grammar does not know."""
    assert JsonState().after(text.encode()).sound is sound
    assert JsonState().after(text.encode()).code == b""


def test_what_goes_too_deep_or_too_long_is_not_sound() -> None:
    assert JsonState().after(b"[" * 64).sound
    assert not JsonState().after(b"[" * 65).sound
    assert JsonState().after(b"7" * 64).sound
    assert not JsonState().after(b"7" * 65).sound
    assert JsonState().after(b'"' + b"[7" * 99).sound, "in a string they are letters"
    assert JsonState().after(b"[1e99, 1e999").sound is False
    assert JsonState().after(b"[1E-99, 12").sound
    assert completion(["[" * 65 + "]" * 65]) is None
