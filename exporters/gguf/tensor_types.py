"""Kinds of their own for chosen tensors: `PATTERN=KIND`, as llama-quantize's `--tensor-type` has it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence

import gguf
from gguf import GGMLQuantizationType as Kind

from edge.errors import UsageError

OPTION = "--tensor-type"


def checked(word: str, legal: Sequence[str]) -> str:
    """`word` with its kind in small letters. Raises UsageError where it is none, or its kind not one of `legal`."""
    text, _, kind = word.rpartition("=")  # a pattern may hold "=", a kind does not
    if not text:
        raise UsageError(f"{OPTION} {word!r} is not PATTERN=KIND", hint=f"{OPTION} attn_v=q8_0")
    if kind.lower() not in legal:
        raise UsageError(f"no kind {kind!r} for {OPTION} {word!r}", hint="one of: " + ", ".join(legal))
    _compiled(text)
    return f"{text}={kind.lower()}"


def kinds(words: Sequence[str], rows: Mapping[str, int]) -> dict[str, Kind]:
    """Name of a matrix -> what it is to be stored as; the first of `words` whose pattern is found in it holds.

    `rows` has the length of each matrix's rows. Raises UsageError for a pattern that decides about no matrix, and where
    no whole blocks make a row: llama.cpp would quietly take another kind.
    """
    found: dict[str, Kind] = {}
    for word in words:
        text, _, named = word.rpartition("=")
        kind = Kind[named.upper()]
        matching = [name for name in rows if _compiled(text).search(name)]
        if not matching:
            shapes = dict.fromkeys(re.sub(r"\d+", "N", name) for name in rows)
            raise UsageError(
                f"{OPTION} {word!r} matches no matrix of the decoder",
                hint="vectors stay float32; the matrices are " + ", ".join(shapes),
            )
        own = [name for name in matching if name not in found]
        if not own:
            raise UsageError(
                f"{OPTION} {word!r} decides about no matrix: those before it match all that it matches",
                hint="the first that matches holds: put the narrower pattern first",
            )
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        for name in own:
            if rows[name] % block:
                raise UsageError(
                    f"{OPTION} {word!r}: {name} has rows of {rows[name]}, and {named} stores blocks of {block}",
                    hint=f"{OPTION} {text}={'q8_0' if rows[name] % 32 == 0 else 'f16'}, or a narrower pattern",
                )
        found |= dict.fromkeys(own, kind)
    return found


def _compiled(text: str) -> re.Pattern[str]:
    """In any letter case, as there. Raises UsageError on what is no pattern, or would mean something else there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # [[:digit:]]: a class there, a plain set here
            return re.compile(text, re.IGNORECASE)
    except (re.error, FutureWarning, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{OPTION} {text!r} is no regular expression: {error}",
            hint=r"a name's own letters will do, or as in 'blk\.[0-3]\.ffn_down'; quote it for the shell",
        ) from error
