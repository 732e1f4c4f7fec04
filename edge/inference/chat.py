"""Chat: a conversation about images, question by question, which can be saved and gone on with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from edge.inference.sampling import Sampling
from edge.inference.saved import SavedChat, write
from edge.inference.vision import ImageTimes
from edge.inputs.prompt import Turn
from edge.types import Embeddings

if TYPE_CHECKING:
    from edge.inference.guides import Schema
    from edge.inference.session import Session

_GREEDY = Sampling()


class Chat:
    """Made by `Session.chat` and `Session.resume`; what was said before is still in the decoder's KV cache."""

    def __init__(
        self, session: Session, images: Sequence[Embeddings], system: str | None, turns: Sequence[Turn] = ()
    ) -> None:
        """`images`: those that the next question is about."""
        self.turns = list(turns)  # those that were answered to the end
        self.system = system  # None: the model's own
        self._session = session
        self._images = tuple(images)

    def ask(self, question: str, *, max_tokens: int = 256, sampling: Sampling = _GREEDY, schema: Schema = None) -> str:
        """The whole answer; the session's `last` tells more about it."""
        return "".join(self.stream(question, max_tokens=max_tokens, sampling=sampling, schema=schema))

    def stream(
        self, question: str, *, max_tokens: int = 256, sampling: Sampling = _GREEDY, schema: Schema = None
    ) -> Iterator[str]:
        """The answer in pieces. A question whose answer is not read to its end, or fails, is not kept."""
        started = perf_counter()
        guide = self._session.guide(schema)
        turn = Turn.about(question, self._images)
        answer = yield from self._session._answer(
            [*self.turns, turn],
            started,
            ImageTimes(),
            system=self.system,
            max_tokens=max_tokens,
            sampling=sampling,
            guide=guide,
        )
        # As the model wrote it, so that the cache holds it; but not with the stop string that ended it.
        whole = self._session.tokenizer.decode(answer.token_ids) == answer.text
        self.turns.append(replace(turn, answer=answer.text, answer_ids=answer.token_ids if whole else None))
        self._images = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it into a file that only its owner may read: turns, what the decoder sees of the images, and the KV
        cache where the engine gives it. `Session.resume` of the same bundle goes on from there. A file that was there
        is replaced when the new one is whole. Raises SessionError where it cannot be written."""
        prefix = self._session._prefix(self.turns, self.system) if self.turns else None
        saved = SavedChat(self.system, tuple(self.turns), self._images, prefix)
        write(path, saved, self._session.bundle)
