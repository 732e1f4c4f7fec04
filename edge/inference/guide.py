"""Guide of one constrained answer: which tokens may come next, and how it ends in time.

It always knows a completion, some text that makes the answer whole, and lets a token through only while that of what
follows still fits into the tokens that are left. So an answer is never torn: at the end of its tokens it is closed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.decoders.base import too_long
from edge.errors import EngineError, UsageError, first_line
from edge.inference.closing import JsonState, closing, completes
from edge.inference.constraint import HINT
from edge.inference.sampling import Sampler


class Pieces:
    """Cuts a text into tokens, longest first."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._ids = {piece: i for i, piece in reversed([*enumerate(pieces)]) if piece}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int] | None:
        """None where no token spells a part of it."""
        found, at = [], 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._ids), None)
            if end is None:
                return None
            found.append(self._ids[text[at:end]])
            at = end
        return found


class Guide:
    """`tokens` and `letters` are parsers of the same grammar: over the vocabulary, and over the 256 bytes."""

    def __init__(
        self,
        tokens: Any,
        letters: Any,
        pieces: Sequence[bytes],
        cut: Pieces,
        stop_ids: Sequence[int],
        kind: str,
    ) -> None:
        """Raises UsageError where no answer is found."""
        self._tokens = tokens
        self._letters = letters
        self._pieces = pieces
        self._cut = cut
        self._stop_ids = list(stop_ids)
        self.kind = kind
        self._json = JsonState() if kind == "schema" else None
        rest = closing(letters, self._json)
        if rest is None or cut(rest) is None:
            raise UsageError(f"no answer that satisfies the {kind} was found", hint=HINT)
        self._rest = rest
        self.closed = False  # for want of tokens

    @property
    def needs(self) -> int:
        """How many tokens make the answer whole."""
        return len(self._cut(self._rest) or ())

    def require_room(self, max_tokens: int, room: int, context: int) -> None:
        """Raises UsageError where an answer needs more than `max_tokens`, and ContextError where it needs more tokens
        than the context of so many positions has `room` for."""
        if self.needs > room:
            raise too_long(context - room + self.needs, context)
        if self.needs > max_tokens:
            raise UsageError(
                f"max_tokens is {max_tokens}, and an answer of this {self.kind} takes {self.needs} or more",
                hint=f"--max-tokens {self.needs}, or more",
            )

    @property
    def finished(self) -> bool:
        """Nothing can follow."""
        return bool(self._tokens.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, [vocab]; those that end the answer where it is whole. Raises EngineError."""
        mask = np.frombuffer(self._tokens.compute_bitmask(), np.uint8)
        found = np.unpackbits(mask, count=len(self._pieces), bitorder="little").view(np.bool_)
        found[self._stop_ids] = self._tokens.is_accepting()
        self._require_sound()
        return found

    def take(self, token: int, left: int) -> int | None:
        """Go on by the token, one of the allowed and none that ends the answer, or by another where that would lead too
        far; None where the answer ends here. `left`: how many tokens there may still be, with this one. Raises
        EngineError."""
        piece = self._pieces[token]
        letters, state = self._after(piece)
        rest = self._completion(letters, state, piece)
        fits = rest is not None and self._fits(rest, left - 1)
        if rest is None or not fits or (state is not None and not state.sound):
            self.closed |= not fits
            if not self._rest:
                return None
            token = (self._cut(self._rest) or [token])[0]
            piece = self._pieces[token]
            letters, state = self._after(piece)
            rest = self._rest[len(piece) :]
        self._letters, self._json, self._rest = letters, state, rest
        self._tokens.consume_token(token)
        self._require_sound()
        return token

    def _after(self, piece: bytes) -> tuple[Any, JsonState | None]:
        letters = self._letters.deep_copy()
        letters.consume_tokens(list(piece))
        return letters, self._json and self._json.after(piece)

    def _completion(self, letters: Any, state: JsonState | None, piece: bytes) -> bytes | None:
        """Of what the piece led to; mostly that of before, or what is left of it."""
        if letters.is_error():
            return None
        if self._rest.startswith(piece):
            return self._rest[len(piece) :]
        for known in (self._rest[len(piece) :], self._rest):
            if completes(letters, known):
                return known
        return closing(letters, state)

    def _fits(self, rest: bytes, left: int) -> bool:
        if len(rest) <= left:  # no token is shorter than a byte
            return True
        cut = self._cut(rest)
        return cut is not None and len(cut) <= left

    def _require_sound(self) -> None:
        if self._tokens.is_error():
            why = first_line(ValueError(self._tokens.get_error()))
            raise EngineError(f"the {self.kind} became too complex to follow: {why}", hint=HINT)


class GuidedSampler:
    """Picks among what a guide allows, `most` tokens at most."""

    def __init__(self, sampler: Sampler, guide: Guide, stop_ids: Collection[int], most: int) -> None:
        self._sampler = sampler
        self._guide = guide
        self._stop_ids = stop_ids
        self._left = most

    @property
    def finished(self) -> bool:
        return self._guide.finished

    def pick(self, logits: NDArray[np.float32], history: Sequence[int]) -> int | None:
        """See Sampler; None where the answer ends."""
        if self.finished:  # an empty answer
            return None
        token = self._sampler.pick(logits, history, self._guide.allowed())
        if token in self._stop_ids:
            return token
        self._left -= 1
        return self._guide.take(token, self._left + 1)
