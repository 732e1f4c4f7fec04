"""What a chat template renders of conversations that tell it apart, and whether pieces feed the same ids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import tokenizers

from edge.errors import UsageError
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.spec import PromptSpec
from edge.spec.pieces import shown
from edge.types import Embeddings, Tokens
from exporters.gguf import rendering
from exporters.gguf.rendering import Failure, Message

MARK = "<image>"  # an image where the template has no mark of its own
NUMBER = "{number}"  # in what a processor writes for an image: how many are before it
_IMAGE = Embeddings(np.empty((1, 1), np.float32), "any image")
PAD = " \n "
# Letters and digits: no filter of a template touches them.
SYSTEM, QUESTIONS, ANSWERS = "Zs0Z", ("Zu0Z", "Zu1Z", "Zu2Z"), ("Za0Z", "Za1Z", "Za2Z")
_ASKED = ("Who is she?", " padded \n", "Größe: 3 ≠ 4\n\n- x", "user", "")
_ANSWERED = ("A pilot.", "\n1. a\n2. b ", "No", "")
_SYSTEMS = (None, "Be brief.", " Two lines\n\nhere ")


class Uncut(Exception):
    """Why a template is not this many pieces, in words."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.json, and the texts that a template knows as bos_token and eos_token ("" for none)."""

    json: str
    bos: str
    eos: str

    def special(self) -> dict[str, tuple[int, tokenizers.AddedToken]]:
        added = tokenizers.Tokenizer.from_str(self.json).get_added_tokens_decoder()
        return {token.content: (i, token) for i, token in added.items() if token.special and token.content}


@dataclass(frozen=True)
class _Talk:
    """A conversation that a template renders and pieces feed."""

    turns: tuple[Turn, ...]
    system: str | None = None

    def messages(self, typed: bool, mark: str) -> list[Message]:
        found = [] if self.system is None else [_message("system", (self.system,), typed, mark)]
        for turn in self.turns:
            found.append(_message("user", turn.content, typed, mark))
            if turn.answer is not None:
                found.append(_message("assistant", (turn.answer,), typed, mark))
        return found


def _message(role: str, content: Sequence[str | Embeddings], typed: bool, mark: str) -> Message:
    if not typed:
        return {"role": role, "content": "".join(item if isinstance(item, str) else mark for item in content)}
    entries = [{"type": "text", "text": item} if isinstance(item, str) else {"type": "image"} for item in content]
    return {"role": role, "content": entries}


def _talk(turns: int, system: str | None = None, pad: str = "", images: Mapping[int, int] | None = None) -> _Talk:
    """Of markers; the last question is open."""
    counts = images or {}
    made = [
        Turn.about(
            f"{pad}{QUESTIONS[n]}{pad}",
            [_IMAGE] * counts.get(n, 0),
            f"{pad}{ANSWERS[n]}{pad}" if n < turns - 1 else None,
        )
        for n in range(turns)
    ]
    return _Talk(tuple(made), None if system is None else f"{pad}{system}{pad}")


_PROBES = {
    "one": _talk(1),
    "two": _talk(2),
    "three": _talk(3),
    "system": _talk(1, SYSTEM),
    "systems": _talk(3, SYSTEM),
    "padded": _talk(3, pad=PAD),
    "padded system": _talk(3, SYSTEM, PAD),
    "no system": _talk(1, ""),
    "image": _talk(2, images={0: 1}),
    "later image": _talk(2, images={1: 1}),
    "system image": _talk(2, SYSTEM, images={0: 1}),
    "image last": _Talk((Turn((QUESTIONS[0], _IMAGE)),)),
}
_SHOWN = ("image", "later image", "system image", "image last")


def _proofs() -> Iterator[_Talk]:
    """Conversations that the pieces are held to."""
    for turns, shift, system in product((1, 2, 3, 4), range(3), _SYSTEMS):
        asked = [_ASKED[(n + shift) % len(_ASKED)] for n in range(turns)]
        answered = [_ANSWERED[(n + shift) % len(_ANSWERED)] for n in range(turns - 1)]
        yield _Talk(tuple(Turn.about(q, (), a) for q, a in zip(asked, [*answered, None], strict=True)), system)


def _shown_proofs() -> Iterator[_Talk]:
    for counts, system in product(({0: 1}, {0: 2}, {0: 1, 1: 1}, {1: 1}), _SYSTEMS[:2]):
        yield _Talk(
            tuple(
                Turn.about(question, [_IMAGE] * counts.get(n, 0), "A cat." if n < 2 else None)
                for n, question in enumerate(("What is this?", "Why?", "Größe?"))
            ),
            system,
        )


def _late_proofs() -> Iterator[_Talk]:
    """With images behind a text."""
    for content, system in product((("Look:", _IMAGE), ("One: ", _IMAGE, "\ntwo:", _IMAGE, "?")), _SYSTEMS[:2]):
        yield _Talk((Turn(content, "A cat."), Turn((_IMAGE, *content), "Two."), Turn(content)), system)


_PROOFS, _SHOWN_PROOFS, _LATE_PROOFS = tuple(_proofs()), tuple(_shown_proofs()), tuple(_late_proofs())


class Template:
    """What a chat template renders of these conversations, with contents as texts and in typed entries. `image_text`
    is what a processor makes of each `image_mark` in it, in which that stands for the image's rows, and NUMBER for how
    many images are before it.

    Raises Uncut where it makes no chat of either, ModuleNotFoundError without jinja2.
    """

    def __init__(
        self,
        template: str,
        base: PromptSpec,
        vocabulary: Vocabulary,
        image_text: str = "",
        image_mark: str = MARK,
    ) -> None:
        self.base, self.vocabulary, self._template, self._image_text = base, vocabulary, template, image_text
        self._image_mark = image_mark
        mark = image_mark if image_text else shown(base.image, {"image": MARK})
        talks = [*_PROBES.values(), *_PROOFS, *_SHOWN_PROOFS, *_LATE_PROOFS]
        asked = [talk.messages(typed, mark) for typed in (False, True) for talk in talks]
        said = rendering.render(template, asked, vocabulary.bos, vocabulary.eos)
        if image_text:
            said = [text if isinstance(text, Failure) else self._shown(text) for text in said]
        plain, typed = said[: len(talks)], said[len(talks) :]
        faults = [_fault(of[: len(_PROBES)]) for of in (plain, typed)]
        if all(faults):
            raise Uncut(str(faults[0]))
        self.forms = [of for of, fault in zip((plain, typed), faults, strict=True) if not fault]
        probes = dict(zip(_PROBES, self.forms[0][: len(_PROBES)], strict=True))
        images = typed if not faults[1] else plain
        probes |= {name: images[list(_PROBES).index(name)] for name in _SHOWN}
        self.typed_images, self._only_typed = not faults[1], bool(faults[0])
        self.begins = vocabulary.bos in vocabulary.special() and all(
            isinstance(text, Failure) or text.startswith(vocabulary.bos) for text in self.forms[0]
        )
        self.probes = {
            name: found if isinstance(found, Failure) or not self.begins else found.removeprefix(vocabulary.bos)
            for name, found in probes.items()
        }

    def text(self, probe: str) -> str:
        found = self.probes[probe]
        if isinstance(found, Failure):
            raise Uncut(found.reason)
        return found

    def closing(self) -> str:
        """What it writes after the last answer, asked for none."""
        talk = _Talk((Turn.about(QUESTIONS[0], answer=ANSWERS[0]),)).messages(self._only_typed, "")
        (said,) = rendering.render(
            self._template, [talk], self.vocabulary.bos, self.vocabulary.eos, add_generation_prompt=False
        )
        return "" if isinstance(said, Failure) else said.partition(ANSWERS[0])[2]

    def whole_image(self) -> str:
        """What is rendered of an image, its mark within."""
        return self._image_text.replace(NUMBER, "0") or self.mark()

    def _shown(self, text: str) -> str:
        """What the processor makes of a text, each of whose images has a mark."""
        first, *rest = text.split(self._image_mark)
        shown = (self._image_text.replace(NUMBER, str(number)) + after for number, after in enumerate(rest))
        return first + "".join(shown)

    def excerpt(self) -> str:
        return shortened(self.text("one").replace(QUESTIONS[0], "What is this?"))

    def differs(self, spec: PromptSpec, *, several: bool = True) -> str | None:
        """The first conversation that the pieces feed otherwise than the template renders it, in words. `several`: also
        of those with several images in one question."""
        raw = tokenizers.Tokenizer.from_str(self.vocabulary.json)
        raw.encode_special_tokens = False
        tokenizer, proven = Tokenizer(tokenizers.Tokenizer.from_str(self.vocabulary.json)), 0
        for form in self.forms:
            said = form[len(_PROBES) :]
            for talk, found in zip((*_PROOFS, *_SHOWN_PROOFS, *_LATE_PROOFS), said, strict=True):
                has_image = talk in (*_SHOWN_PROOFS, *_LATE_PROOFS)
                if not several and any(_images(turn) > 1 for turn in talk.turns):
                    continue
                if talk in _LATE_PROOFS and spec.image_question_when == "anywhere":
                    continue  # many templates write images first, whatever their order
                if isinstance(found, Failure) or (has_image and form is not self.forms[-1]):
                    continue
                if talk.system is not None and spec.question.after_system is None:
                    continue
                try:
                    fed = _flat(segments(spec, tokenizer, talk.turns, talk.system))
                except UsageError as error:
                    return error.message
                wanted = self._ids(found, spec, raw)
                if has_image and None not in wanted and self.typed_images:
                    continue  # it shows none: its mark is the published one's
                if fed != wanted:
                    return f"renders {shortened(found)}, which its pieces do not"
                proven += len(talk.turns) > 2
        return None if proven else "fails in every conversation that its pieces are held to"

    def _ids(self, text: str, spec: PromptSpec, raw: tokenizers.Tokenizer) -> list[int | None]:
        """As transformers reads it, an image as None."""
        mark, special = self.mark(), self.vocabulary.special()
        if mark in special or mark not in text:
            ids: list[int | None] = list(raw.encode(text, add_special_tokens=False).ids)
            ids = [None if mark in special and i == special[mark][0] else i for i in ids]
        else:  # LLaVA's programs cut there before they tokenise
            chunks = [raw.encode(chunk, add_special_tokens=False).ids if chunk else [] for chunk in text.split(mark)]
            ids = [i for n, chunk in enumerate(chunks) for i in ([None, *chunk] if n else chunk)]
        return ids if self.begins or spec.bos_id is None else [spec.bos_id, *ids]

    def mark(self) -> str:
        """What stands for an image in what is rendered."""
        if self._image_mark in self.text("image"):
            return self._image_mark
        special = self.vocabulary.special()
        before = self.text("image").partition(QUESTIONS[0])[0]
        named = {name for name in special if name in before and re.search("image|img", name, re.IGNORECASE)}
        named = {name for name in named if not re.search("start|end|begin|/", name, re.IGNORECASE)}
        if len(named) > 1:
            raise Uncut(f"writes {' and '.join(map(repr, sorted(named)))} for an image: one is read")
        return named.pop() if named else MARK


def shortened(text: str) -> str:
    """For people, who know nothing of markers."""
    markers = {SYSTEM: "SYSTEM", **dict(zip(QUESTIONS, ("QUESTION 1", "QUESTION 2", "QUESTION 3"), strict=True))}
    markers |= dict(zip(ANSWERS, ("ANSWER 1", "ANSWER 2", "ANSWER 3"), strict=True))
    for marker, words in markers.items():
        text = text.replace(marker, words)
    return rendering.shortened(text)


def _images(turn: Turn) -> int:
    return sum(isinstance(item, Embeddings) for item in turn.content)


def _flat(found: Sequence[Tokens | Embeddings]) -> list[int | None]:
    return [i for part in found for i in (part.ids if isinstance(part, Tokens) else [None])]


def _fault(said: Sequence[str | Failure]) -> str | None:
    """Why this is no chat: it fails, loses what is said, or shows the entries themselves."""
    for name, text in zip(_PROBES, said, strict=True):
        if name not in ("one", "three"):
            continue
        if isinstance(text, Failure):
            return text.reason
        wanted = (*QUESTIONS, *ANSWERS[:2]) if name == "three" else QUESTIONS[:1]
        if lost := [marker for marker in wanted if marker not in text]:
            what = "a question" if lost[0] in QUESTIONS else "an answer"
            return f"leaves out {what}: renders {shortened(text)}"
        if "'type'" in text or '"type"' in text:
            return f"writes the entries of a content: renders {shortened(text)}"
    return None
