"""A chat template becomes pieces: what it renders of markers is cut there, and the pieces are held to what it renders
of other conversations, token by token.

The proof is trusted, not the cutting: a template whose pieces depend on the turn, on what is said or on what else it
may look at renders something else than they do in one of the conversations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from tokenizers import AddedToken

from edge.spec import PromptSpec
from edge.spec.pieces import Ids, Piece, Pieces, Questions, Slot, SlotName, Text, Trim
from exporters.sources.template_rendered import (
    ANSWERS,
    MARK,
    NUMBER,
    PAD,
    QUESTIONS,
    SYSTEM,
    Template,
    Uncut,
    shortened,
)

Special = Mapping[str, tuple[int, AddedToken]]  # a special token's text -> its id, and how it is read


def cut(template: Template) -> PromptSpec:
    """The template as pieces, which may write several images of one question otherwise than it does. Raises Uncut with
    the reason where it is none."""
    spec = _Cutter(template).spec()
    if faults := spec.faults():
        raise Uncut("; ".join(faults))
    if (apart := template.differs(spec)) and template.differs(spec, several=False):
        raise Uncut(apart)
    return spec


def pieces(text: str, special: Special, mark: str = "") -> Pieces:
    """Text, and the ids of special tokens, of which the longest name counts; the slot of an image for its `mark`, and
    of its number for NUMBER."""
    if mark:
        before, _, after = text.partition(mark)
        return (*pieces(before, special), Slot("image"), *pieces(after, special))
    if NUMBER in text:
        before, _, after = text.partition(NUMBER)
        return (*pieces(before, special), Slot("number"), *pieces(after, special))
    names = sorted(special, key=len, reverse=True)
    found = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    return tuple(_one(special[part][0]) if n % 2 else Text(part) for n, part in enumerate(found) if part)


def _between(text: str, *markers: str) -> list[str]:
    """The texts around the markers, each of which must stand once and in this order."""
    found = []
    whole = text
    for marker in markers:
        if whole.count(marker) != 1 or marker not in text:
            raise Uncut(f"writes what is said {whole.count(marker)} times, or in another order: {shortened(whole)}")
        before, _, text = text.partition(marker)
        found.append(before)
    return [*found, text]


def _markers(turns: int) -> list[str]:
    return [marker for pair in zip(QUESTIONS[:turns], ANSWERS, strict=False) for marker in pair][: 2 * turns - 1]


class _Cutter:
    def __init__(self, template: Template) -> None:
        self.template, self.base = template, template.base
        self.special = template.vocabulary.special()
        self.start, self.generation = _between(template.text("one"), *_markers(1))
        _, self.answer, self.later, self.answer_2, self.later_2, _ = whole = _between(
            template.text("three"), *_markers(3)
        )
        two = _between(template.text("two"), *_markers(2))
        for name, found in {
            "the start": (self.start, whole[0], two[0]),
            "what stands before an answer": (self.answer, self.answer_2, two[1]),
            "what stands after an answer": (self.later, self.later_2, two[2]),
            "what stands after the last question": (self.generation, whole[-1], two[-1]),
        }.items():
            if len(set(found)) > 1:
                one, other = [*dict.fromkeys(found)][:2]
                raise Uncut(f"renders {name} as {shortened(one)} and as {shortened(other)}, by the turn")

    def spec(self) -> PromptSpec:
        end, closing = self._end()
        stops = self.base.stop_ids if end is None or end in self.base.stop_ids else (*self.base.stop_ids, end)
        strings = self.base.stop_strings if end is not None else (closing,)
        system, default, first = self._system()
        kept, later = self._ended(self.later)
        question = self._questions(first, system, later)
        shown_question, image, mark = self._image(system)
        ends = () if end is None else (end,)
        answer = (*self._pieces(self.answer), self._slot("answer", "padded", ANSWERS[0]), *kept, *map(_one, ends))
        bos = self.special[self.template.vocabulary.bos][0] if self.template.begins else self.base.bos_id
        restarts = () if mark in self.special else ("image",)
        return PromptSpec(
            question=question,
            image_question=shown_question,
            image_question_when=self._when(shown_question),
            views=self.base.views,
            image=image,
            answer=self._stripped(answer)[: -len(ends) or None],
            generation=self._stripped(self._pieces(self.generation)),
            default_system=default,
            image_tokens=self.base.image_tokens,
            bos_id=bos,
            restarts=restarts if self.template.begins or bos is None else ("bos", *restarts),  # type: ignore[arg-type]
            end_ids=ends,
            stop_ids=stops,
            stop_strings=strings,
        )

    def _end(self) -> tuple[int | None, str]:
        """The special token that ends an answer; where there is none, the text that does."""
        ids = [piece.ids[0] for piece in self._pieces(self.later) if isinstance(piece, Ids)]
        if ids:
            return ids[0], ""
        text = self.template.closing().strip()
        if not text:
            raise Uncut(f"ends an answer with {shortened(self.later)}: nothing would stop the model there")
        return None, text

    def _ended(self, text: str) -> tuple[Pieces, Pieces]:
        """What stands between an answer and its end, and from there to the next question."""
        pieces, end = self._stripped(self._pieces(text)), self._end()[0]
        if end is None:
            return (), pieces
        at = pieces.index(_one(end))
        return pieces[:at], pieces[at + 1 :]

    def _system(self) -> tuple[tuple[str, str] | None, str, str]:
        """What stands around a system message, the one that stands there by default, and the start without one."""
        try:
            before, after, _ = _between(self.template.text("system"), SYSTEM, *_markers(1))
            whole = _between(self.template.text("systems"), SYSTEM, *_markers(3))
        except Uncut:
            return None, "", self.start
        if whole[:2] != [before, after] or whole[2:4] != [self.answer, self.later] or whole[-1] != self.generation:
            return None, "", self.start
        inner = len(self.start) - len(before) - len(after)
        if inner <= 0 or not (self.start.startswith(before) and self.start.endswith(after)):
            return (before, after), "", self.start
        empty = self.template.probes["no system"]
        first = empty.partition(QUESTIONS[0])[0] if isinstance(empty, str) else before + after
        return (before, after), self.start[len(before) : len(before) + inner], first

    def _questions(self, first: str, system: tuple[str, str] | None, later: Pieces) -> Questions:
        after_system: Pieces | None = None
        if system is not None:
            after_system = (
                *self._pieces(system[0]),
                self._slot("system", "padded system", SYSTEM),
                *self._pieces(system[1]),
                self._slot("content", "padded system", QUESTIONS[0]),
            )
        return Questions(
            self._stripped((*self._pieces(first), self._slot("content", "padded", QUESTIONS[0]))),
            None if after_system is None else self._stripped(after_system),
            self._stripped((*later, self._slot("content", "padded", QUESTIONS[1]))),
        )

    def _image(self, system: tuple[str, str] | None) -> tuple[Questions | None, Pieces, str]:
        """The questions that have an image, where they are others, what an image becomes, and its mark."""
        if not self.template.typed_images:
            return None, self.base.image, MARK
        mark, whole_image = self.template.mark(), self.template.whole_image()
        image = pieces(whole_image, self.special, mark)
        first = _between(self.template.text("image"), *_markers(2))
        second = _between(self.template.text("later image"), *_markers(2))
        if mark not in first[0]:
            if mark in self.template.text("image"):
                raise Uncut(f"writes an image after its question: renders {shortened(self.template.text('image'))}")
            return None, self.base.image, MARK
        if first[1:] != [self.answer, self.later, self.generation] or second[:2] != [self.start, self.answer]:
            raise Uncut("changes more with an image than what stands before its question")
        if first[0].startswith(self.start) and second[2].startswith(self.later):
            before, _, after = first[0].removeprefix(self.start).partition(whole_image)
            return None, (*self._pieces(before), *image, *self._pieces(after)), mark
        starts = [text.partition(whole_image)[0] for text in (first[0], second[2])]
        after = first[0].partition(whole_image)[2]
        around = None
        if system is not None:
            whole = _between(self.template.text("system image"), SYSTEM, *_markers(2))
            around = (whole[0], whole[1].partition(whole_image)[0])
        questions = self._questions(starts[0], around, self._ended(starts[1])[1])
        return questions, (*image, *self._pieces(after)), mark

    def _when(self, shown: Questions | None) -> Literal["anywhere", "first"]:
        """Where an image must stand for that question to be asked."""
        late = self.template.probes["image last"]
        begins = isinstance(late, str) and late.startswith(self.start + QUESTIONS[0])
        return "first" if shown is not None and begins else "anywhere"

    def _slot(self, name: SlotName, probe: str, marker: str) -> Slot:
        """With the sides that the template strips."""
        text = self.template.text(probe)
        left, right = f"{PAD}{marker}" not in text, f"{marker}{PAD}" not in text
        trims: dict[tuple[bool, bool], Trim] = {
            (False, False): "none",
            (True, False): "left",
            (False, True): "right",
            (True, True): "both",
        }
        return Slot(name, trims[left, right])

    def _pieces(self, text: str) -> Pieces:
        return pieces(text, self.special)

    def _stripped(self, pieces: Pieces) -> Pieces:
        """Some special tokens take the white space beside them: it is left out here, once."""
        tokens = dict(self.special.values())
        found: list[Piece] = list(pieces)
        for n, piece in enumerate(pieces):
            if isinstance(piece, Ids) and tokens[piece.ids[-1]].rstrip:
                _strip(found, range(n + 1, len(found)), "left")
            if isinstance(piece, Ids) and tokens[piece.ids[0]].lstrip:
                _strip(found, range(n - 1, -1, -1), "right")
        return tuple(piece for piece in found if piece != Text(""))


def _one(token: int) -> Ids:
    return Ids((token,))


def _strip(pieces: list[Piece], places: range, side: Trim) -> None:
    """White space is taken across a text that holds nothing else."""
    for place in places:
        pieces[place] = _without_space(pieces[place], side)
        if pieces[place] != Text(""):
            break


def _without_space(piece: Piece, side: Trim) -> Piece:
    if isinstance(piece, Text):
        return Text(piece.text.lstrip() if side == "left" else piece.text.rstrip())
    if isinstance(piece, Slot):
        return replace(piece, trim=side if piece.trim in ("none", side) else "both")
    return piece
