"""A grammar of a few words, in the contract of the library's parsers: what a guide is tried with."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from edge.inference.guide import Guide, Pieces


class Words:
    """Accepts one of some texts, written in pieces; the last bit of its mask is no piece."""

    def __init__(self, words: Collection[bytes], pieces: Sequence[bytes], said: bytes = b"") -> None:
        self.words = words
        self.pieces = pieces
        self.said = said
        self.broken = ""

    def compute_bitmask(self) -> bytes:
        fits = [piece != b"" and self._leads(self.said + piece) for piece in self.pieces]
        return np.packbits([*fits, self.is_accepting()], bitorder="little").tobytes()

    def consume_token(self, token: int) -> bool:
        self.said += self.pieces[token]
        if not self._leads(self.said):
            self.broken = "no word begins so"
        return not self.broken

    def consume_tokens(self, tokens: Sequence[int]) -> bool:
        return all(self.consume_token(token) for token in tokens)

    def is_accepting(self) -> bool:
        return self.said in self.words

    def is_stopped(self) -> bool:
        return bool(self.broken) or [word for word in self.words if word.startswith(self.said)] == [self.said]

    def is_error(self) -> bool:
        return bool(self.broken)

    def get_error(self) -> str:
        return self.broken

    def deep_copy(self) -> Words:
        found = Words(self.words, self.pieces, self.said)
        found.broken = self.broken
        return found

    def _leads(self, text: bytes) -> bool:
        return any(word.startswith(text) for word in self.words)


def guide(words: Collection[str], pieces: Sequence[bytes], stop_ids: Sequence[int], kind: str = "choice") -> Guide:
    encoded = [word.encode() for word in words]
    letters = Words(encoded, [bytes((byte,)) for byte in range(256)])
    return Guide(Words(encoded, pieces), letters, pieces, Pieces(pieces), stop_ids, kind)
