"""A conversation becomes segments: the template's text around the pictures, tokenised chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge.errors import UsageError
from edge.spec import PromptSpec
from edge.tokenizer import Tokenizer
from edge.types import Embeddings, Segment, Tokens

MARK = "<image>"
TEXT = "{text}"


@dataclass(frozen=True)
class Turn:
    """A question about some pictures, and its answer once there is one."""

    question: str
    pictures: tuple[Embeddings, ...] = ()
    answer: str | None = None
    answer_ids: tuple[int, ...] | None = None  # as the model wrote it: taken before `answer`, whose ids may be others


def segments(spec: PromptSpec, tokenizer: Tokenizer, turns: Sequence[Turn], system: str | None = None) -> list[Segment]:
    """What the decoder is fed: no two Tokens stand side by side, and none is empty.

    `system` None takes the model's own; "" leaves it out. The text between two pictures, or between a picture or the
    end of an answer and the next, is tokenised on its own: that is how the model was trained. What a user types is
    text, whatever it looks like. Raises UsageError when a turn before the last has no answer.
    """
    found: list[Segment] = []
    ids: list[int] = [] if spec.bos_id is None else [spec.bos_id]
    text = ""
    for piece in _pieces(spec, turns, spec.default_system if system is None else system):
        if isinstance(piece, str):
            text += piece
            continue
        if text:
            ids += tokenizer.encode(text)
        text = ""
        if isinstance(piece, int):
            ids.append(piece)
            continue
        if ids:
            found.append(Tokens(tuple(ids)))
        found.append(piece)
        ids = []
    if text:
        ids += tokenizer.encode(text)
    return [*found, Tokens(tuple(ids))] if ids else found


def _pieces(spec: PromptSpec, turns: Sequence[Turn], system: str) -> Iterator[str | int | Embeddings]:
    """The conversation in order: text, the id that ends an answer, pictures."""
    if system:
        yield spec.system.replace(TEXT, system)
    before_picture, _, after_picture = spec.image.partition(MARK)
    before_user, _, after_user = spec.user.partition(TEXT)
    for number, turn in enumerate(turns, 1):
        yield before_user
        for picture in turn.pictures:
            yield before_picture
            yield picture
            yield after_picture
        yield turn.question + after_user
        if turn.answer_ids is not None:
            yield spec.generation
            yield from turn.answer_ids
            yield spec.end_id
        elif turn.answer is not None:
            yield spec.assistant.replace(TEXT, turn.answer)
            yield spec.end_id
        elif number == len(turns):
            yield spec.generation
        else:
            raise UsageError(f"turn {number} of {len(turns)} has no answer", hint="only the last turn may be open")
