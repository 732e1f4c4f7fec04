"""A conversation becomes segments: the prompt's pieces and what is said, tokenised chunk by chunk around the images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from edge.errors import UsageError
from edge.inputs.tokenizer import Tokenizer
from edge.spec import PromptSpec
from edge.spec.pieces import Ids, Piece, Pieces, Text, Trim
from edge.types import Embeddings, Segment, Tokens

Content = tuple[str | Embeddings, ...]
_BOS, _IDS, _IMAGE = "bos", "ids", "image"  # what a text may begin anew after


@dataclass(frozen=True)
class Turn:
    """A question, text and images in the order in which they are shown, and its answer once there is one."""

    content: Content
    answer: str | None = None
    answer_ids: tuple[int, ...] | None = None  # as the model wrote it: taken before `answer`, whose ids may be others

    @classmethod
    def about(
        cls,
        question: str,
        images: Sequence[Embeddings] = (),
        answer: str | None = None,
        answer_ids: tuple[int, ...] | None = None,
    ) -> Self:
        """The images before the question, as models of one question about an image learned it."""
        return cls((*images, question), answer, answer_ids)


def segments(spec: PromptSpec, tokenizer: Tokenizer, turns: Sequence[Turn], system: str | None = None) -> list[Segment]:
    """What the decoder is fed: no two Tokens stand side by side, and none is empty.

    `system` None takes the model's own; "" leaves it out. What stands between two ids or images is tokenised as one
    text. What a user types is text, whatever it looks like. Raises UsageError when a turn before the last has no answer
    and on a system message for a prompt without a place for one.
    """
    found: list[Segment] = []
    ids: list[int] = [] if spec.bos_id is None else [spec.bos_id]
    text, after = "", None if spec.bos_id is None else _BOS
    for part in [*parts(spec, turns, system), None]:
        if isinstance(part, str):
            text += part
            continue
        if text:
            ids += tokenizer.encode(text, start=after is None or after in spec.restarts)
        text = ""
        if isinstance(part, int):
            ids.append(part)
            after = _IDS
            continue
        if ids:
            found.append(Tokens(tuple(ids)))
        ids = []
        if part is not None:
            found.append(part)
            after = _IMAGE
    return found


def parts(spec: PromptSpec, turns: Sequence[Turn], system: str | None = None) -> Iterator[str | int | Embeddings]:
    """The conversation in order, after `bos_id`: text, ids of special tokens, images. `system` as for `segments`."""
    if system and spec.question.after_system is None:
        raise UsageError("the model's prompt has no place for a system message", hint="say it in the question")
    system = spec.default_system if system is None else system
    images = itertools.count()
    for number, turn in enumerate(turns, 1):
        shown = [isinstance(item, Embeddings) for item in turn.content]
        asked = spec.questions(any(shown[:1] if spec.image_question_when == "first" else shown))
        if number > 1:
            question = asked.later
        else:
            question = asked.after_system if system and asked.after_system is not None else asked.first
        yield from _filled(question, turn.content, system, place=lambda image: _placed(spec, image, next(images)))
        if turn.answer_ids is not None:
            yield from _filled(spec.generation)
            yield from turn.answer_ids
            yield from spec.end_ids
        elif turn.answer is not None:
            yield from _filled(spec.answer, answer=turn.answer)
            yield from spec.end_ids
        elif number == len(turns):
            yield from _filled(spec.generation)
        else:
            raise UsageError(f"turn {number} of {len(turns)} has no answer", hint="only the last turn may be open")


def _filled(
    pieces: Pieces,
    content: Content = (),
    system: str = "",
    answer: str = "",
    place: Callable[[Embeddings], Iterable[str | int | Embeddings]] = lambda image: (image,),
) -> Iterator[str | int | Embeddings]:
    """The pieces with what is said in their slots, and each image as `place` makes it."""
    said: dict[str, Content] = {"content": content, "system": (system,), "answer": (answer,)}
    for piece in pieces:
        if isinstance(piece, Text):
            yield piece.text
        elif isinstance(piece, Ids):
            yield from piece.ids
        else:
            for item in _trimmed(said[piece.slot], piece.trim):
                yield from (item,) if isinstance(item, str) else place(item)


def _placed(spec: PromptSpec, image: Embeddings, number: int) -> Iterator[str | int | Embeddings]:
    """One image in its slot, or each view of it in its own."""
    views, rows = iter((image,)), spec.image_tokens
    pieces: Iterable[Piece] = spec.image
    if image.grid is not None and spec.views is not None:
        pieces = spec.views.of(*image.grid)
        starts = range(0, len(image), rows)
        views = iter([Embeddings(image.rows[i : i + rows], image.key, image.first + i) for i in starts])
    for piece in pieces:
        if isinstance(piece, Ids):
            yield from piece.ids
        elif isinstance(piece, Text):
            yield piece.text
        else:
            yield next(views) if piece.slot == "image" else str(number)


def _trimmed(content: Content, trim: Trim) -> Content:
    """Without white space on the given sides, where text stands there."""
    items = list(content)
    if items and trim in ("left", "both") and isinstance(first := items[0], str):
        items[0] = first.lstrip()
    if items and trim in ("right", "both") and isinstance(last := items[-1], str):
        items[-1] = last.rstrip()
    return tuple(items)
