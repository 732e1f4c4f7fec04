"""Compile constraints with llguidance (the extra `schema`). Imported only where an answer is constrained."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

import llguidance

from edge.errors import EngineError, UsageError, first_line
from edge.inference.constraint import HINT, Constraint
from edge.inference.guide import Guide, Pieces
from edge.inputs.tokenizer import Tokenizer

# One space at most after a comma or a colon: a small model that may write more writes spaces for ever.
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?", "lenient": False}
# A schema takes under a second to compile, and a step milliseconds, or they are refused.
_LIMITS: Any = {
    "max_items_in_row": 1000,
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
}
_CONTEXT = re.compile(r"\s*<|\n *\d+ \| ")  # what it quotes of the grammar, and its own state
_PLACES = re.compile(r"at \d+\(\d+\): |failed to compile JSON schema: |\(in regex\): ")


class Grammars:
    """The vocabulary, as the library wants it: prepared once, in a third of a second for 32,000 tokens."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, stop_ids: Collection[int]) -> None:
        """`vocab`: how many logits there are. What ends an answer is not a part of it, whatever it is spelled."""
        self._pieces = [b"" if i in stop_ids else tokenizer.spelling(i) for i in range(vocab)]
        self._stop_ids = tuple(i for i in stop_ids if i < vocab)
        self._strips_space = tokenizer.strips_space
        self._tokens = _vocabulary(self._pieces)
        self._bytes = _vocabulary([bytes((byte,)) for byte in range(256)])
        self._cut = Pieces(self._pieces)

    def guide(self, constraint: Constraint) -> Guide:
        """Raises UsageError on a constraint that cannot be compiled, or that no answer satisfies."""
        grammar = self._grammar(constraint)
        tokens, letters = (_matcher(vocabulary, grammar, constraint.kind) for vocabulary in (self._tokens, self._bytes))
        return Guide(tokens, letters, self._pieces, self._cut, self._stop_ids, constraint.kind)

    def _grammar(self, constraint: Constraint) -> str:
        """The whole answer, in the library's variant of Lark. Where a tokenizer writes a space before the first word,
        and the text is without it, so is the answer: a text that begins with a space must then begin with two."""
        body = _body(constraint)
        plain = _lark(f"start: answer\n{body}")
        if not self._strips_space:
            return plain
        spaced = _matcher(self._bytes, plain, constraint.kind).validate_tokens([0x20])
        return _lark(f'start: " " answer\n{body}' if spaced else f'start: " "? answer\n{body}')


def _body(constraint: Constraint) -> str:
    if constraint.kind == "schema":
        return f"answer: %json {json.dumps({**json.loads(constraint.source), 'x-guidance': _JSON})}"
    if constraint.kind == "choice":
        return f"answer: /{'|'.join(map(_quoted, json.loads(constraint.source)))}/"
    digits = "d"  # \d: of ASCII
    return f"answer: /{llguidance.regex_to_lark(constraint.source, digits)}/"


def _quoted(text: str) -> str:
    """As a pattern."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def _lark(text: str) -> str:
    return str(llguidance.LLMatcher.grammar_from_lark(text))


def _matcher(vocabulary: Any, grammar: str, kind: str) -> Any:
    limits = llguidance.LLParserLimits(**_LIMITS, verbose_errors=False)
    matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    matcher.compute_bitmask()  # some limits are met at the first step only
    if matcher.is_error():
        raise UsageError(f"the {kind} cannot be compiled: {_reason(matcher.get_error())}", hint=HINT)
    return matcher


def _reason(said: str) -> str:
    """What the library says, as part of our own message."""
    if said.startswith("NoExtension"):
        return "nothing satisfies it"
    if "coerce_one_of" in said:
        return "oneOf is taken only where its alternatives exclude each other; write anyOf where one of them is enough"
    return " ".join(_PLACES.sub("", _CONTEXT.split(said)[0]).split())[:300]


def _vocabulary(pieces: Sequence[bytes]) -> Any:
    """With a token more, which nobody can say: the library wants one that ends an answer. It marks special tokens by a
    first byte 0xFF, which no text has."""
    said = [b"" if piece.startswith(b"\xff") else piece for piece in pieces]
    tokens: Any = _Pieces([*said, b""])
    try:
        return llguidance.LLTokenizer(tokens, n_vocab=len(pieces) + 1, eos_token=len(pieces))
    except ValueError as error:
        raise EngineError(f"llguidance does not take the vocabulary: {first_line(error)}") from error


class _Pieces:
    """What the library asks of a tokenizer. It cuts texts itself, longest pieces first: what the bundle's tokenizer
    puts before a text would be counted as part of it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]
        self._cut = Pieces(tokens)

    def __call__(self, text: str | bytes) -> list[int]:
        return self._cut(text.encode() if isinstance(text, str) else text) or []
