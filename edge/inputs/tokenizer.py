"""Text to token ids and back, on the tokenizer.json of a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from edge.devices import file_facts
from edge.errors import BundleError, first_line
from edge.inputs import tokenizer_checks

REPLACEMENT = "\ufffd"
_SOUND = "tokenizer 1"  # the fact that the library survives it, and the version of what is looked at
_PANIC = "PanicException"  # of the library's language, and no Exception


class Tokenizer:
    """A tokenizer.json whose decoder is SentencePiece's (bytes as `<0xNN>`) or byte-level.

    `encode` takes all text as text: a special token typed by a user is spelled out. `decode` skips special ids.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        steps = list(_steps(json.loads(inner.decoder.__getstate__()) if inner.decoder else {}, "decoders"))
        kinds = {step["type"] for step in steps}
        if not kinds & {"ByteFallback", "ByteLevel"}:
            raise BundleError(
                f"tokenizer.json has the decoder {sorted(kinds)}; ByteFallback or ByteLevel is read",
                hint="export the bundle again",
            )
        self._inner = inner
        self._special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
        self._byte_level = "ByteLevel" in kinds
        self.strips_space = any(step["type"] == "Strip" and step.get("start") for step in steps)
        self._spelling = lru_cache(maxsize=None)(self._spell)

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Raises BundleError when the file is missing, damaged or of another kind."""
        try:
            file_facts.fact(path, _SOUND, tokenizer_checks.check)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} is not a tokenizer.json: {error}", hint="export the bundle again") from error
        with _border(f"{path} is not a tokenizer.json"):
            return cls(tokenizers.Tokenizer.from_file(str(path)))

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self._inner.get_vocab().values()) + 1

    def encode(self, text: str, *, start: bool = True) -> tuple[int, ...]:
        """No special ids are added. A lone surrogate, which no encoding can hold, counts as U+FFFD.

        `start`: whether the text stands where one begins. Some tokenizers (SentencePiece's with `legacy: false`) put a
        space before such a text only, and none before a text that follows a special token.
        """
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with _border("the tokenizer cannot cut this text"):
            return tuple((self._inner if start else self._within).encode(whole, add_special_tokens=False).ids)

    @cached_property
    def _within(self) -> tokenizers.Tokenizer:
        """For texts that do not begin one: the same, where a beginning makes no difference."""
        data = json.loads(self._inner.to_str())
        steps = list(_steps(data["pre_tokenizer"] or {}, "pretokenizers"))
        if not (first := [step for step in steps if step.get("prepend_scheme") == "first"]):
            return self._inner
        for step in first:
            step["prepend_scheme"] = "never"
        within = tokenizers.Tokenizer.from_str(json.dumps(data))
        within.encode_special_tokens = True
        return within

    def decode(self, ids: Iterable[int]) -> str:
        """Special ids, and ids that the vocabulary lacks, stand for nothing. Bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream()
        return "".join([stream.push(i) for i in ids]) + stream.finish()

    def stream(self) -> TextStream:
        return TextStream(self)

    def spelling(self, token_id: int) -> bytes:
        """The bytes of one token, a part of a character or nothing (special ids) among them."""
        return self._spelling(token_id)

    def _spell(self, token_id: int) -> bytes:
        piece = self._inner.id_to_token(token_id)
        if piece is None or token_id in self._special:
            return b""
        if self._byte_level:
            alphabet = _byte_of()
            return bytes(alphabet[c] for c in piece) if alphabet.keys() >= set(piece) else piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return piece.replace("▁", " ").encode()


class TextStream:
    """Tokens in, text out, as soon as its characters are whole. The pieces together are `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held = b""
        self._at_start = tokenizer.strips_space

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" while a character is cut."""
        spelling = self._tokenizer.spelling(token_id)
        if spelling and self._at_start:
            spelling = spelling.removeprefix(b" ")
            self._at_start = False
        text, self._held = _whole(self._held + spelling)
        return text

    def finish(self) -> str:
        """What is left: bytes that never became a character."""
        text, self._held = REPLACEMENT * len(self._held), b""
        return text


@contextmanager
def _border(what: str) -> Iterator[None]:
    """The library's bare Exceptions, and its panics, become one BundleError."""
    try:
        yield
    except BundleError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise BundleError(f"{what}: {first_line(error)}", hint="export the bundle again") from error


def _whole(data: bytes) -> tuple[str, bytes]:
    """The text of the data, each byte that belongs to no character as U+FFFD (as SentencePiece does), and the
    start of a character at the end."""
    text = ""
    while data:
        try:
            return text + data.decode(), b""
        except UnicodeDecodeError as error:
            text += data[: error.start].decode()
            if error.end == len(data) and error.reason == "unexpected end of data":
                return text, data[error.start :]
            text += REPLACEMENT * (error.end - error.start)
            data = data[error.end :]
    return text, b""


def _steps(whole: dict[str, Any], inner: str) -> Iterator[dict[str, Any]]:
    """Of a decoder or a pre-tokenizer, whose sequence holds its own under `inner`."""
    if whole.get("type") == "Sequence":
        for step in whole[inner]:
            yield from _steps(step, inner)
    elif whole:
        yield whole


@cache
def _byte_of() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = (byte for byte in range(256) if byte not in plain)
    return {chr(b): b for b in plain} | {chr(0x100 + n): b for n, b in enumerate(shifted)}
