"""The Vicuna template, written out by hand, against segments()."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.spec import PromptSpec
from edge.spec.pieces import Ids, Questions, Slot, Text, ViewPieces
from edge.types import Embeddings, Segment, Tokens

TOKENIZER = Tokenizer.open(Path(__file__).parents[1] / "data" / "tokenizer.json")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
USER = (Text("USER: "), Slot("content"), Text(" "))
SPEC = PromptSpec(
    question=Questions(USER, (Slot("system"), Text(" "), *USER), USER), image_question=None,
    image=(Slot("image"), Text("\n")), answer=(Text("ASSISTANT: "), Slot("answer")), generation=(Text("ASSISTANT:"),),
    default_system=SYSTEM, image_tokens=2, bos_id=1, restarts=("bos", "image"), end_ids=(2,), stop_ids=(2,),
    stop_strings=("</s>",),
)  # fmt: skip
CAT = Embeddings(np.zeros((2, 4), np.float32), "cat")
DOG = Embeddings(np.ones((2, 4), np.float32), "dog")
BOS, EOS = 1, 2


def ids(text: str) -> tuple[int, ...]:
    return TOKENIZER.encode(text)


def flat(found: list[Segment]) -> list[tuple[int, ...] | str]:
    return [part.ids if isinstance(part, Tokens) else part.key for part in found]


def test_a_question_about_a_picture():
    found = segments(SPEC, TOKENIZER, [Turn.about("What is this?", (CAT,))])
    assert flat(found) == [(BOS, *ids(SYSTEM + " USER: ")), "cat", ids("\nWhat is this? ASSISTANT:")]
    assert found[1] is CAT


def test_a_question_without_a_picture_is_one_run_of_tokens():
    found = segments(SPEC, TOKENIZER, [Turn.about("What is red?")])
    assert flat(found) == [(BOS, *ids(SYSTEM + " USER: What is red? ASSISTANT:"))]


def test_several_pictures_each_with_the_text_around_the_mark():
    found = segments(SPEC, TOKENIZER, [Turn.about("Which?", (CAT, DOG, CAT))])
    assert flat(found) == [
        (BOS, *ids(SYSTEM + " USER: ")), "cat", ids("\n"), "dog", ids("\n"), "cat", ids("\nWhich? ASSISTANT:"),
    ]  # fmt: skip


def test_images_are_counted_through_a_conversation():
    spec = replace(SPEC, image=(Ids((7,)), Slot("number"), Ids((8,)), Slot("image"), Text("\n")), default_system="")
    turns = [Turn.about("Which?", (CAT, DOG), "Both."), Turn.about("And?", (CAT,))]
    assert flat(segments(spec, TOKENIZER, turns)) == [
        (BOS, *ids("USER: "), 7, *ids("0"), 8), "cat", (*ids("\n"), 7, *ids("1"), 8), "dog",
        (*ids("\nWhich? ASSISTANT: Both."), EOS, *ids("USER: "), 7, *ids("2"), 8), "cat", ids("\nAnd? ASSISTANT:"),
    ]  # fmt: skip
    assert not spec.faults()
    twice = replace(spec, image=(*spec.image, Slot("number")))
    assert "the slot 'number' 1 times, not 0" in twice.faults()[0]


def test_the_whole_before_its_slices():
    row = ((Ids((5,)), Slot("image"), Ids((6,))),) * 2
    spec = replace(SPEC, views=ViewPieces((row, row), (Text("\n"),), (Slot("image"), Ids((9,))), overview_first=True))
    three = Embeddings(np.zeros((6, 4), np.float32), "cut", grid=(2, 1))
    found = segments(spec, TOKENIZER, [Turn.about("Q", (three,))], system="")
    assert [len(part) if isinstance(part, Embeddings) else part.ids for part in found][1::2] == [2, 2, 2]
    assert flat(found)[2::2] == [(9, 5), (6, *ids("\n"), 5), (6, *ids("\nQ ASSISTANT:"))]
    assert [part.first for part in found if isinstance(part, Embeddings)] == [0, 2, 4]


def test_pictures_with_no_text_between_stand_side_by_side():
    bare = Questions((Slot("content"),), None, (Slot("content"),))
    spec = replace(SPEC, image=(Slot("image"),), question=bare, default_system="", bos_id=None)
    found = segments(spec, TOKENIZER, [Turn.about("Q", (CAT, DOG))], system="")
    assert flat(found) == ["cat", "dog", ids("QASSISTANT:")]


def test_text_before_the_mark_stays_before_the_picture():
    spec = replace(SPEC, image=(Text("Picture: "), Slot("image"), Text(". ")))
    found = segments(spec, TOKENIZER, [Turn.about("Q", (CAT, DOG))], system="S")
    assert flat(found) == [
        (BOS, *ids("S USER: Picture: ")), "cat", ids(". Picture: "), "dog", ids(". Q ASSISTANT:"),
    ]  # fmt: skip


def test_a_conversation_ends_each_answer_and_starts_anew():
    turns = [Turn.about("What?", (CAT,), "A cat."), Turn.about("And this?", (DOG,), "A dog."), Turn.about("Sure?")]
    found = segments(SPEC, TOKENIZER, turns)
    assert flat(found) == [
        (BOS, *ids(SYSTEM + " USER: ")),
        "cat",
        (*ids("\nWhat? ASSISTANT: A cat."), EOS, *ids("USER: ")),
        "dog",
        (*ids("\nAnd this? ASSISTANT: A dog."), EOS, *ids("USER: Sure? ASSISTANT:")),
    ]


def test_a_finished_conversation_asks_for_nothing():
    assert flat(segments(SPEC, TOKENIZER, [Turn.about("Q", answer="A")], "S")) == [
        (BOS, *ids("S USER: Q ASSISTANT: A"), EOS)
    ]


def test_the_ids_that_the_model_wrote_stand_for_its_answer():
    """Written as text and read again, they could become others, and what is in the cache would be of no use."""
    written = (*ids("A"), *ids("ca"), *ids("t"))
    turns = [Turn.about("What?", (CAT,), "A ca t", written), Turn.about("Sure?")]
    assert flat(segments(SPEC, TOKENIZER, turns, "S"))[2] == (
        *ids("\nWhat? ASSISTANT:"), *written, EOS, *ids("USER: Sure? ASSISTANT:"),
    )  # fmt: skip


def test_a_conversation_is_a_prefix_of_the_next():
    """What makes the key-value cache useful: the ids so far do not change when a turn is added."""
    first = flat(segments(SPEC, TOKENIZER, [Turn.about("What?", (CAT,), "A cat.")]))
    second = flat(segments(SPEC, TOKENIZER, [Turn.about("What?", (CAT,), "A cat."), Turn.about("Sure?")]))
    assert second[:2] == first[:2]
    assert second[2][: len(first[2])] == first[2]


@pytest.mark.parametrize(
    ("system", "text"), [("Be short.", "Be short. USER: Q"), ("", "USER: Q"), (None, SYSTEM + " USER: Q")]
)
def test_the_system_sentence(system, text):
    assert flat(segments(SPEC, TOKENIZER, [Turn.about("Q")], system)) == [(BOS, *ids(text + " ASSISTANT:"))]


def test_bos_is_put_once_or_not_at_all():
    turns = [Turn.about("Q", (CAT,), "A"), Turn.about("Q", (CAT,))]
    assert sum(part.ids.count(BOS) for part in segments(SPEC, TOKENIZER, turns) if isinstance(part, Tokens)) == 1
    assert flat(segments(replace(SPEC, bos_id=None), TOKENIZER, [Turn.about("Q")], "")) == [ids("USER: Q ASSISTANT:")]


@pytest.mark.parametrize("typed", ["<image>", "</s>", "<s>", "{text}", "{0}", "USER: ", "a <image>\n</s> b"])
def test_what_a_user_types_is_text(typed):
    for turn in (Turn.about(typed, (CAT,)), Turn.about("Q", (CAT,), typed)):
        found = segments(SPEC, TOKENIZER, [turn], system=typed)
        assert [part for part in found if isinstance(part, Embeddings)] == [CAT]
        special = [i for part in found if isinstance(part, Tokens) for i in part.ids if i in (0, BOS, EOS)]
        assert special == ([BOS] if turn.answer is None else [BOS, EOS])
    assert flat(segments(SPEC, TOKENIZER, [Turn.about(typed, (CAT,))]))[2] == ids(f"\n{typed} ASSISTANT:")
    assert flat(segments(SPEC, TOKENIZER, [Turn.about("Q")], typed)) == [(BOS, *ids(f"{typed} USER: Q ASSISTANT:"))]


def test_only_the_last_turn_may_be_open():
    with pytest.raises(UsageError, match=r"turn 1 of 2 has no answer"):
        segments(SPEC, TOKENIZER, [Turn.about("Q"), Turn.about("Q")])


def test_text_and_images_in_the_order_in_which_they_are_shown():
    turn = Turn(("Here: ", CAT, " and here: ", DOG, "\nSame?"))
    assert flat(segments(SPEC, TOKENIZER, [turn], "")) == [
        (BOS, *ids("USER: Here: ")), "cat", ids("\n and here: "), "dog", ids("\n\nSame? ASSISTANT:"),
    ]  # fmt: skip


def test_a_question_with_an_image_may_begin_otherwise():
    asked = Questions((Text("I:"), Slot("content")), (Slot("system"), Text("I:"), Slot("content")), (Slot("content"),))
    spec = replace(SPEC, image_question=asked, bos_id=None)
    assert flat(segments(spec, TOKENIZER, [Turn.about("Q", [CAT])], "")) == [ids("I:"), "cat", ids("\nQASSISTANT:")]
    assert flat(segments(spec, TOKENIZER, [Turn.about("Q", [CAT])], "S"))[0] == ids("SI:")
    assert flat(segments(spec, TOKENIZER, [Turn.about("Q")], "")) == [ids("USER: Q ASSISTANT:")]


def test_ids_of_special_tokens_stand_between_texts_of_their_own():
    asked = (Ids((300, 301)), Text("user\n"), Slot("content"), Ids((302,)))
    spec = replace(SPEC, question=Questions(asked, None, asked), default_system="", end_ids=(302, 303))
    found = segments(spec, TOKENIZER, [Turn.about("Q", answer="A"), Turn.about("R")])
    assert flat(found) == [(
        BOS, 300, 301, *ids("user\nQ"), 302, *ids("ASSISTANT: A"), 302, 303,
        300, 301, *ids("user\nR"), 302, *ids("ASSISTANT:"),
    )]  # fmt: skip


@pytest.mark.parametrize(("trim", "said"), [("none", " \nQ\t "), ("left", "Q\t "), ("right", " \nQ"), ("both", "Q")])
def test_a_slot_loses_the_white_space_of_its_sides(trim, said):
    asked = (Text("["), Slot("content", trim), Text("]"))
    spec = replace(SPEC, question=Questions(asked, None, asked), default_system="", bos_id=None)
    assert flat(segments(spec, TOKENIZER, [Turn.about(" \nQ\t ")])) == [ids(f"[{said}]ASSISTANT:")]


def test_a_prompt_without_a_place_for_a_system_message_refuses_one():
    spec = replace(SPEC, question=Questions(USER, None, USER), default_system="")
    assert segments(spec, TOKENIZER, [Turn.about("Q")]) == segments(spec, TOKENIZER, [Turn.about("Q")], "")
    with pytest.raises(UsageError, match="no place for a system message"):
        segments(spec, TOKENIZER, [Turn.about("Q")], "Be brief.")


def test_only_a_text_at_a_start_gets_the_space_of_one(tmp_path):
    """SentencePiece with legacy: false. What transformers reads as one text has it once, and none after </s>."""
    data = json.loads((Path(__file__).parents[1] / "data" / "tokenizer.json").read_text())
    data["normalizer"] = None
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    turns = [Turn.about("Q", answer="A"), Turn.about("R")]
    (found,) = segments(SPEC, tokenizer, turns, "")
    whole = "USER: Q ASSISTANT: A</s>USER: R ASSISTANT:"
    assert found == Tokens((BOS, *raw.encode(whole, add_special_tokens=False).ids))
    spec = replace(SPEC, restarts=())
    (found,) = segments(spec, tokenizer, turns, "")
    assert found == Tokens(tuple(raw.encode("<s>" + whole, add_special_tokens=False).ids))
    assert tokenizer.encode("USER", start=False) != tokenizer.encode("USER")
    assert TOKENIZER.encode("USER", start=False) == TOKENIZER.encode("USER")


turn = st.builds(
    Turn.about, st.text(max_size=20), st.lists(st.sampled_from([CAT, DOG]), max_size=3).map(tuple), st.text(max_size=9)
)


@given(st.lists(turn, max_size=4), st.one_of(st.none(), st.text(max_size=9)))
def test_tokens_are_merged_and_pictures_keep_their_order(turns, system):
    found = segments(SPEC, TOKENIZER, turns, system)
    assert [part for part in found if isinstance(part, Embeddings)] == [
        p for turn in turns for p in turn.content if p is CAT or p is DOG
    ]
    assert all(len(part) for part in found)
    assert not any(isinstance(a, Tokens) and isinstance(b, Tokens) for a, b in pairwise(found))
    assert sum(part.ids.count(EOS) for part in found if isinstance(part, Tokens)) == len(turns)
