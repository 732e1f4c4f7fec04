"""Completion of a constrained answer: a short text that makes whole what was said so far.

A parser tells which bytes may come next, and which end would be legal. The search always takes what closes most, and
inside of a pattern, where nothing tells what that is, the byte that leads to where it has been least.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

MOST_BYTES = 1 << 14  # of a completion
MOST_STEPS = 20_000  # of the parser, in one search
MOST_DEPTH = 64  # of an answer's JSON, and
MOST_DIGITS = 64  # of a number in it, and
MOST_EXPONENT = 2  # digits of its exponent: what reads it has limits too
_HEX = 4  # digits of an escaped character
_NUMBER = frozenset(b"0123456789+-.eE")
_CLOSING = b'}],:0123456789-ntf"[{.eE+'  # outside of strings, what closes most first; spaces come last
_FEW = 24  # bytes that are all tried inside of a pattern
_SAMPLE = b"0123456789aA!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ \n"  # of more bytes, these


@dataclass(frozen=True)
class JsonState:
    """Where in a JSON text its end is."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False
    code: bytes = b""  # of the escaped character that it is in: `u`, and hexadecimal digits
    number: bytes = b""  # that it is in
    spelled: bool = True  # every character in the one way in which a grammar knows it

    @property
    def sound(self) -> bool:
        exponent = self.number.lower().partition(b"e")[2].lstrip(b"+-")
        return (
            self.spelled
            and self.depth <= MOST_DEPTH
            and len(self.number) <= MOST_DIGITS
            and len(exponent) <= MOST_EXPONENT
        )

    def after(self, piece: bytes) -> Self:
        state = self
        for byte in piece:
            state = state._within(byte) if state.in_string else state._outside(byte)
        return state

    def _within(self, byte: int) -> Self:
        """A string. A letter that is escaped is another spelling of its name, whose value a grammar does not know."""
        if self.escaped:
            code = b"u" if byte == 0x75 else b""
            return replace(self, escaped=False, code=code, spelled=self.spelled and byte != 0x2F)
        if self.code:
            code = self.code + bytes((byte,))
            if len(code) <= _HEX:
                return replace(self, code=code)
            control = int(code[1:], 16) < 0x20 or code.lower() == b"u007f"
            return replace(self, code=b"", spelled=self.spelled and control)
        return replace(self, escaped=True) if byte == 0x5C else replace(self, in_string=byte != 0x22)

    def _outside(self, byte: int) -> Self:
        number = self.number + bytes((byte,)) if byte in _NUMBER else b""
        depth = self.depth + (byte in b"[{") - (byte in b"]}")
        return replace(self, depth=depth, in_string=byte == 0x22, number=number)


def allowed_bytes(parser: Any) -> list[int]:
    """What may come next: of a parser whose tokens are the 256 bytes."""
    mask = int.from_bytes(parser.compute_bitmask(), "little")
    return [byte for byte in range(256) if mask >> byte & 1]


def completes(parser: Any, rest: bytes) -> bool:
    """Whether `rest` makes the text whole; the parser stays where it is."""
    ahead = parser.deep_copy()
    return bool(ahead.consume_tokens(list(rest)) and ahead.is_accepting())


def closing(parser: Any, state: JsonState | None) -> bytes | None:
    """Few bytes that make the text whole; None: none were found. `state` None: it is no JSON."""
    ahead, found, steps = parser.deep_copy(), b"", 0
    visits: Counter[bytes | int] = Counter()
    while not ahead.is_accepting():
        choices = sorted(allowed_bytes(ahead), key=lambda byte: (byte <= 0x20, byte))  # spaces last
        byte = choices[0] if len(choices) == 1 else _structural(choices, state)
        if byte is None:
            if len(choices) > _FEW:
                choices = [byte for byte in _SAMPLE if byte in choices] or choices[:1]
            steps += len(choices)
            byte = _least_visited(ahead, choices, state, visits)
        steps += 1
        if byte is None or len(found) >= MOST_BYTES or steps > MOST_STEPS:
            return None
        ahead.consume_token(byte)
        found += bytes((byte,))
        state = state and state.after(found[-1:])
        if state is not None and not state.sound:
            return None
    return found


def _structural(choices: Sequence[int], state: JsonState | None) -> int | None:
    """What closes most by JSON's own syntax; None where that does not tell."""
    if state is None or not choices:
        return None
    if state.in_string:
        return 0x22 if 0x22 in choices and not state.escaped else None
    best = min(choices, key=lambda byte: _CLOSING.index(byte) if byte in _CLOSING else 256)
    # A number may have to go on: which digit helps is the pattern's business.
    return None if state.number and best in _NUMBER else best


def _least_visited(
    parser: Any, choices: Sequence[int], state: JsonState | None, visits: Counter[bytes | int]
) -> int | None:
    """The byte that leads to where the search has been least, known by what is allowed there; of equal ones that which
    was taken least. None of none."""
    best: tuple[int, int] | None = None
    found, where = None, b""
    for byte in choices:
        ahead = parser.deep_copy()
        ahead.consume_token(byte)
        signature = ahead.compute_bitmask()
        ends = ahead.is_accepting() or (state is not None and _ends(signature, state))
        rank = (-1 if ends else visits[signature], visits[byte])
        if best is None or rank < best:
            best, found, where = rank, byte, signature
    if found is not None:
        visits.update((where, found))
    return found


def _ends(signature: bytes, state: JsonState) -> bool:
    """Whether a string or number could end next."""
    mask = int.from_bytes(signature, "little")
    return any(mask >> byte & 1 for byte in (b'"' if state.in_string else b",}]"))
