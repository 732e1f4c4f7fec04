"""Golden vectors for run sides in other languages, from the Python one: `make golden`.

They hold on every machine; `compute.py` writes what this one computes of a bundle.

Pictures are made of numbers that any language makes: x = (1664525 x + 1013904223) mod 2³², from x = seed, gives a byte
x >> 24 at each step, row after row, red, green, blue; with `hard`, 0 or 255 by its highest bit.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from edge.inference.sampling import Sampler, Sampling
from edge.inputs import image
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.inputs.views import views
from edge.spec import DecoderSpec, ImageSpec, PromptSpec, ViewsSpec, VLMSpec, parse
from edge.types import Embeddings, Tokens

HERE = Path(__file__).parent
DECODER = DecoderSpec(1, 1, 1, 8, 8, 100, 64, 10000.0, rope_dim=8, family="tiny", ffn=8, gated=True)
FILES = HERE / "tokenizers"
FUZZED = 3000
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {"gpt2": None, "smollm": None, "qwen2": _WORDS + r"\p{N}" + _REST, "llama3": _WORDS + r"\p{N}{1,3}" + _REST}

TEXTS = [
    "", " ", "  two  spaces ", "What is in the picture?", "\n", "a\nb\tc", "ÄÖÜ ß é e\u0301", "日本語のテキスト",
    "👩‍👩‍👧‍👦 🏳️‍🌈", "<s></s><unk> <0x0A>", "▁▁x", "مرحبا", "x" * 200, "the the the", "\u0000\u0001", "\ufeffbom",
    "ﬁ ½ ① İ ſ", "\u00a0nbsp\u3000wide\u2028line", "ASSISTANT:USER:", "🙂🙂", "…—“quotes”", "\U0010ffff\U00010000",
    "<|im_start|>user<tool>x</tool><|im_end|>", "it's IT'S 'S we'LL don't", "1234567 12 ٣٤٥ ⅷ", "a \n\n  b  \r\n c",
    "   ", "K\u0130\u0131 Ω Å", "\u0085next\u180e\u200b",
]  # fmt: skip
_BITS = [
    "the", "sign", "star", " ", "  ", "\n", "\r\n", "\t", "▁", "<s>", "</s>", "<0x0A>", "<unk>", "<tool>", "<|im_end|>",
    "é", "e\u0301", "ß", "İ", "ﬃ", "漢", "字", "👩‍👩‍👧", "\u200d", "\ufeff", "\u00a0", "\u3000", "\u2028", "\x00",
    "\x7f", "\ud7ff", "\ue000", "\ufffd", "\ufffe", "😀", "\U0010ffff", "object", "large", "What", "How", "'s", "'LL",
    "ASSISTANT", ":", "?", ".", "42", "1234", "OWL", "-", '"', "\\", "/", "{text}", "<image>",
]  # fmt: skip
_PLANES = ((32, 127), (0xA0, 0x250), (0x400, 0x500), (0x4E00, 0x4F00), (0x1F300, 0x1F600))

IMAGES: list[dict[str, Any]] = [
    {"width": width, "height": height, "seed": seed, "hard": bool(seed % 2), "fit": fit, "resample": how, "size": size}
    for seed, (width, height, fit, how, size) in enumerate(
        [
            (1, 1, "pad", "bicubic", 28), (17, 311, "pad", "bicubic", 96), (311, 17, "pad", "bicubic", 96),
            (96, 96, "pad", "bicubic", 96), (640, 480, "pad", "bicubic", 336), (333, 500, "pad", "bilinear", 224),
            (20, 20, "crop", "bicubic", 28), (100, 100, "crop", "bilinear", 48), (200, 100, "crop", "bicubic", 50),
            (5, 400, "crop", "bilinear", 8), (28, 40, "crop", "bilinear", 28), (64, 64, "stretch", "bicubic", 24),
            (30, 20, "stretch", "bilinear", 64), (9000, 3, "pad", "bicubic", 16), (2, 9000, "stretch", "bicubic", 16),
            (61, 47, "stretch", "lanczos", 40),
        ]
    )
]  # fmt: skip
IMAGES += [
    {**IMAGES[-1], "width": width, "height": height, "seed": seed, "fit": "long_edge", "long_edge": 96}
    for seed, (width, height) in enumerate([(1, 1), (130, 77), (40, 96), (500, 2)], 21)
]
VIEWS: list[dict[str, Any]] = [
    {"width": width, "height": height, "seed": seed, "hard": bool(seed % 2), "size": 24, "long_edge": 96, "most": most}
    for seed, (width, height, most) in enumerate(
        [(1, 1, 17), (130, 77, 17), (77, 130, 17), (500, 2, 17), (131, 77, 15), (77, 131, 6), (60, 60, 2), (64, 64, 17)]
    )
]
SAMPLED: list[dict[str, Any]] = [
    {"seed": seed, **asked}
    for seed, asked in enumerate(
        [
            {"temperature": 1.0},
            {"temperature": 0.7, "top_k": 5},
            {"temperature": 1.5, "top_p": 0.8},
            {"temperature": 2.0, "top_k": 40, "top_p": 0.5, "repeat_penalty": 1.3},
        ]
    )
]
SAMPLED += [{**SAMPLED[0], "seed": 2**32 + 7}, {**SAMPLED[2], "seed": 2**63 - 1}]
BACKGROUND, MEAN, STD = (122, 116, 104), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_CHATML = {
    "question": {
        "first": [{"ids": [1]}, {"text": "user\n"}, {"slot": "content", "trim": "both"}, {"ids": [2]}, {"text": "\n"}],
        "after_system": None,
        "later": [{"ids": [1]}, {"text": "user\n"}, {"slot": "content"}, {"ids": [2]}, {"text": "\n"}],
    },
    "image_question": {
        "first": [{"ids": [1]}, {"text": "look\n"}, {"slot": "content", "trim": "left"}, {"ids": [2]}],
        "after_system": None,
        "later": [{"ids": [1]}, {"slot": "content", "trim": "right"}, {"ids": [2]}],
    },
    "image": [{"ids": [3]}, {"slot": "image"}, {"text": " "}, {"ids": [4]}],
    "answer": [{"text": "said: "}, {"slot": "answer", "trim": "both"}],
    "generation": [{"ids": [1]}, {"text": "said: "}],
    "default_system": "",
    "restarts": ["ids"],
    "bos_id": None,
}
_USER = [{"text": "USER: "}, {"slot": "content"}, {"text": " "}]
_VICUNA = {
    "question": {"first": _USER, "after_system": [{"slot": "system"}, {"text": " "}, *_USER], "later": _USER},
    "image_question": None,
    "image": [{"slot": "image"}, {"text": "\n"}],
    "answer": [{"text": "ASSISTANT: "}, {"slot": "answer"}],
    "generation": [{"text": "ASSISTANT:"}],
    "default_system": "A chat.",
    "restarts": ["bos", "image"],
    "bos_id": 1,
}
_TILE = [{"text": "tile "}, {"slot": "image"}]
_DIVIDED = {
    **_VICUNA,
    "views": {
        "tiles": [[_TILE, [{"ids": [5]}, {"slot": "image"}], _TILE], [_TILE] * 3, [_TILE] * 3],
        "row_end": [{"text": "\n"}],
        "overview": [{"ids": [6]}, {"slot": "image"}, {"text": "whole\n"}],
    },
}
_COMMON = {"image_tokens": 2, "end_ids": [2], "stop_ids": [2], "stop_strings": []}
PROMPTS: dict[str, Any] = {
    "vicuna": {**_VICUNA, **_COMMON},
    "chatml": {**_CHATML, **_COMMON},
    "divided": {**_DIVIDED, **_COMMON},
}
CONVERSATIONS: list[dict[str, Any]] = [
    {"turns": [{"question": "What is this?", "images": 1}], "system": None},
    {"turns": [{"question": "  spaced \u2003", "images": 0}], "system": None},
    {"turns": [{"question": " both ", "images": 2}], "system": ""},
    {
        "turns": [
            {"question": "First", "images": 1, "answer": " A cat. "},
            {"question": " Second ", "images": 0, "answer": "A dog.", "answer_ids": [300, 301]},
            {"question": " Third ", "images": 1},
        ],
        "system": None,
    },
    {"turns": [{"question": "Hi", "images": 0}], "system": "Be brief."},
]
TILED: list[dict[str, Any]] = [  # of prompts with pieces for tiles
    {"turns": [{"question": "What?", "images": 2, "grid": grid}], "system": None} for grid in ([2, 3], [3, 1])
]


def written() -> dict[str, str]:
    """Each file beside this one, as it should be."""
    names = ["byte_fallback", *sorted(path.stem for path in FILES.glob("*.json"))]
    texts = [*TEXTS, *fuzzed()]
    found = {"texts": texts, "awkward": len(TEXTS), "tokenizers": {name: _tokenized(name, texts) for name in names}}
    pictures = {"images": [_hashed(entry) for entry in IMAGES], "divided": [_divided(entry) for entry in VIEWS]}
    images = {"background": BACKGROUND, "mean": MEAN, "std": STD, **pictures}
    return {
        "texts.json": _text(found),
        "images.json": _text(images),
        "prompts.json": _text({"prompts": PROMPTS, "conversations": [*_conversations()]}),
        "sampled.json": _text({"sampled": [_sampled(entry) for entry in SAMPLED]}),
    }


def fuzzed() -> list[str]:
    """Texts of what tokenizers stumble over, without lone surrogates, which JSON in other languages may refuse."""
    chance = random.Random(1)

    def bit() -> str:
        return chance.choice(_BITS) if chance.random() < 0.8 else chr(chance.randrange(*chance.choice(_PLANES)))

    return ["".join(bit() for _ in range(chance.randrange(14))) for _ in range(FUZZED)]


def picture(width: int, height: int, seed: int, hard: bool) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]."""
    numbers, x = bytearray(), seed
    for _ in range(3 * width * height):
        x = (1664525 * x + 1013904223) % 2**32
        numbers.append((255 if x >> 31 else 0) if hard else x >> 24)
    return np.frombuffer(numbers, np.uint8).reshape(height, width, 3)


def digest(ids: Any) -> str:
    """The first eight digits of the sha256 of ids with commas."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:8]


def _tokenized(name: str, texts: list[str]) -> dict[str, Any]:
    """Ids of the awkward texts, and of the others a digest; ids at random, and their text."""
    tokenizer = _open(name)
    chance = random.Random(2)
    rows = [[chance.randrange(tokenizer.size + 2) for _ in range(12)] for _ in range(60)]
    if name == "byte_fallback":  # bytes that are cut, overlong, surrogates, too large
        cut = ("e282", "e228a1", "f09f9982", "c080", "eda080", "f4908080", "f09f41")
        rows += [[3 + byte for byte in bytes.fromhex(line)] for line in cut]
    ids = [tokenizer.encode(text) for text in texts]
    return {
        "ids": ids[: len(TEXTS)],
        "within": [tokenizer.encode(text, start=False) for text in TEXTS],
        "digests": "".join(map(digest, ids[len(TEXTS) :])),
        "decoded": [{"ids": row, "text": tokenizer.decode(row)} for row in rows],
    }


def _open(name: str) -> Tokenizer:
    return Tokenizer.open(
        HERE.parent / "data" / "tokenizer.json" if name == "byte_fallback" else FILES / f"{name}.json"
    )


def _hashed(entry: dict[str, Any]) -> dict[str, Any]:
    rgb = picture(entry["width"], entry["height"], entry["seed"], entry["hard"])
    spec = ImageSpec(entry["size"], entry["fit"], BACKGROUND, entry["resample"], MEAN, STD, entry.get("long_edge"))
    values = image.pixels(rgb, spec).astype("<f4")
    return {**entry, "sha256": hashlib.sha256(values.tobytes()).hexdigest()}


def _divided(entry: dict[str, Any]) -> dict[str, Any]:
    """Rows and columns of tiles, and the pixels of all views after each other."""
    rgb = picture(entry["width"], entry["height"], entry["seed"], entry["hard"])
    size, edge = entry["size"], entry["long_edge"]
    spec = ImageSpec(size, "long_edge", BACKGROUND, "lanczos", MEAN, STD, edge, ViewsSpec(-(-edge // size), None))
    prompt = replace(parse(PromptSpec, next(iter(PROMPTS.values()))), image_tokens=1)  # `most` counts views
    found = views(rgb, VLMSpec(spec, prompt, DECODER, None), entry["most"])
    values = b"".join(view.astype("<f4").tobytes() for view in found.pixels)
    return {**entry, "grid": found.grid or (0, 0), "sha256": hashlib.sha256(values).hexdigest()}


def _sampled(asked: dict[str, Any]) -> dict[str, Any]:
    """Logits of 300 tokens by the rule of pictures, from -8 to 8; 40 picks, each of which is history to the next."""
    numbers, x = [], asked["seed"] % 2**32
    for _ in range(300):
        x = (1664525 * x + 1013904223) % 2**32
        numbers.append(x / 2**28 - 8)
    logits, sampler = np.array(numbers, np.float32), Sampler(Sampling(**asked))
    picks: list[int] = []
    for _ in range(40):
        picks.append(sampler.pick(logits, picks))
    return {**asked, "picks": picks}


def _conversations() -> Iterator[dict[str, Any]]:
    """Each with each prompt and two tokenizers that differ in where a space stands; images are null."""
    for prompt, told in PROMPTS.items():
        spec = parse(PromptSpec, told)
        for name in ("byte_fallback", "metaspace_first"):
            for conversation in CONVERSATIONS if spec.views is None else TILED:
                if conversation["system"] and spec.question.after_system is None:
                    continue
                found = segments(spec, _open(name), [*map(_turn, conversation["turns"])], conversation["system"])
                cut = [list(s.ids) if isinstance(s, Tokens) else None for s in found]
                yield {"prompt": prompt, "tokenizer": name, **conversation, "segments": cut}


def _turn(told: dict[str, Any]) -> Turn:
    grid = tuple(told["grid"]) if "grid" in told else None
    rows = 2 * (grid[0] * grid[1] + 1 if grid else 1)
    images = [Embeddings(np.zeros((rows, 4), np.float32), "image", grid=grid)] * told["images"]
    answer_ids = tuple(told["answer_ids"]) if "answer_ids" in told else None
    return Turn.about(told["question"], images, told.get("answer"), answer_ids)


def _text(found: Any) -> str:
    return json.dumps(found, separators=(",", ":")).replace('"],"', '"],\n"').replace('},{"', '},\n{"') + "\n"


def train() -> None:
    """The small tokenizers, once: other versions of the library may learn other merges."""
    corpus = [*TEXTS, *fuzzed(), "The star is red. What does the sign say? It says OWL."] * 2
    for name, pattern in PATTERNS.items():
        inner = tokenizers.Tokenizer(models.BPE(ignore_merges=name == "llama3"))
        own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
        split = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else split
        inner.pre_tokenizer = pre_tokenizers.Sequence([*split, own]) if split else own
        inner.decoder = decoders.ByteLevel()
        if name == "qwen2":
            inner.normalizer = normalizers.NFC()
        inner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=420, initial_alphabet=own.alphabet()))
        inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        inner.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=True)])
        (FILES / f"{name}.json").write_text(inner.to_str(), encoding="utf-8")
    plain = json.loads((HERE.parent / "data" / "tokenizer.json").read_bytes())
    for name, scheme, split in (("metaspace_first", "first", False), ("metaspace_always", "always", True)):
        step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
        (FILES / f"{name}.json").write_text(json.dumps({**plain, "normalizer": None, "pre_tokenizer": step}), "utf-8")


def main() -> None:
    if not list(FILES.glob("*.json")):
        train()
    for name, text in written().items():
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
