"""A byte-level BPE vocabulary as GGUF keeps it: a tokenizer.json as llama.cpp's `gpt2` model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import gguf
from gguf import TokenType

from edge.errors import CheckpointError
from exporters.sources.sentencepiece import PIECES

MODEL = "gpt2"  # what byte-level BPE is called there
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# `tokenizer.ggml.pre`, by how a text is cut before its bytes are merged (`Split`'s pattern, "ByteLevel" for its own, or
# "Digits" for that between single digits) and whether words of the vocabulary are taken whole (`ignore_merges`).
# llama.cpp has each in its code by this name.
PRE = {
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    ("ByteLevel", False): "gpt-2",
    ("Digits", False): "smollm",
}


def add(writer: gguf.GGUFWriter, tokenizer_json: str, size: int) -> list[str]:
    """Write model, pre-tokenizer, tokens, types and merges; gives the texts of the `size` tokens.

    Raises CheckpointError on a tokenizer that llama.cpp would read otherwise than it is, with what it would.
    """
    data: dict[str, Any] = json.loads(tokenizer_json)
    model = _model(data)
    pre = _pre(data, bool(model.get("ignore_merges")))
    texts = [f"[PAD{i}]" for i in range(size)]  # rows of the table that no text is cut into
    types = [TokenType.UNUSED] * size
    for text, i in model["vocab"].items():
        texts[i], types[i] = text, TokenType.NORMAL
    for token in data.get("added_tokens") or ():
        if odd := [flag for flag in ("lstrip", "rstrip", "single_word") if token[flag]]:
            raise _refused(f"the added token {token['content']!r} is {' and '.join(odd)}")
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        texts[token["id"]], types[token["id"]] = token["content"], kind
    writer.add_tokenizer_model(MODEL)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([text.encode() for text in texts])
    writer.add_token_types(types)
    writer.add_token_merges(list(_merges(model["merges"])))
    return texts


def _model(data: Mapping[str, Any]) -> Mapping[str, Any]:
    model: Mapping[str, Any] = data["model"]
    if (kind := model.get("type")) != "BPE":
        raise _refused(f"its model is {kind!r}")
    odd = {
        key: model[key]
        for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
        if model.get(key)
    }
    if odd:
        raise _refused("its BPE model has " + ", ".join(f"{key} {value!r}" for key, value in odd.items()))
    return model


def _pre(data: Mapping[str, Any], ignore_merges: bool) -> str:
    told = data.get("pre_tokenizer") or {}
    steps = told.get("pretokenizers", [told])
    pattern: str | None
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        pattern = "ByteLevel"
    elif kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        pattern = "Digits"
    elif kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        cut = steps[0]
        pattern = cut["pattern"].get("Regex") if (cut["behavior"], cut["invert"]) == ("Isolated", False) else None
    else:
        raise _refused(f"its pre-tokenizer is {' and '.join(map(str, kinds))}")
    if steps[-1].get("add_prefix_space"):
        raise _refused("its pre-tokenizer puts a space before a text (add_prefix_space)")
    found = PRE.get((pattern, ignore_merges)) if pattern else None
    if found is None:
        raise _refused(f"its pre-tokenizer cuts by {pattern!r}, ignore_merges {str(ignore_merges).lower()}")
    return found


def _merges(merges: Iterable[str | list[str]]) -> Iterable[str]:
    """Older files have "a b", newer ones two texts; a byte-level text has no space of its own."""
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if " " in left + right:
            raise _refused(f"it merges {left!r} and {right!r}")
        yield f"{left} {right}"


def _refused(what: str) -> CheckpointError:
    return CheckpointError(
        f"there is no {PIECES}, and llama.cpp has no tokenizer like that of tokenizer.json: {what}",
        hint=f"copy {PIECES} of the base model beside config.json, if it has one; of byte-level BPE these are known: "
        f"{', '.join(sorted(PRE.values()))}; or another --format for the decoder",
    )
