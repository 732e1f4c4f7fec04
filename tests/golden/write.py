"""Golden vectors for run sides in other languages, from the Python one: `make golden`.

Without arguments: the files beside this one, which hold on every machine. With BUNDLE OUT: what this machine computes
of a bundle, into OUT: little-endian float32 and `here.json`. Another language on the same library gives the same bits.

Pictures are made of numbers that any language makes: x = (1664525 x + 1013904223) mod 2³², from x = seed, gives a byte
x >> 24 at each step, row after row, red, green, blue; with `hard`, 0 or 255 by its highest bit.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from edge.bundle import safetensors
from edge.bundle.golden import Golden
from edge.bundle.manifest import MANIFEST, describe
from edge.inference.session import load
from edge.inputs import image
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.spec import ImageSpec, PromptSpec, parse
from edge.types import Embeddings, Tokens

HERE = Path(__file__).parent
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
_COMMON = {"image_tokens": 2, "end_ids": [2], "stop_ids": [2], "stop_strings": []}
PROMPTS: dict[str, Any] = {"vicuna": {**_VICUNA, **_COMMON}, "chatml": {**_CHATML, **_COMMON}}
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


def written() -> dict[str, str]:
    """Each file beside this one, as it should be."""
    names = ["byte_fallback", *sorted(path.stem for path in FILES.glob("*.json"))]
    texts = [*TEXTS, *fuzzed()]
    found = {"texts": texts, "awkward": len(TEXTS), "tokenizers": {name: _tokenized(name, texts) for name in names}}
    images = {"background": BACKGROUND, "mean": MEAN, "std": STD, "images": [_hashed(entry) for entry in IMAGES]}
    return {
        "texts.json": _text(found),
        "images.json": _text(images),
        "prompts.json": _text({"prompts": PROMPTS, "conversations": [*_conversations()]}),
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


def _conversations() -> Iterator[dict[str, Any]]:
    """Each with each prompt and two tokenizers that differ in where a space stands; images are null."""
    for prompt, told in PROMPTS.items():
        spec = parse(PromptSpec, told)
        for name in ("byte_fallback", "metaspace_first"):
            for conversation in CONVERSATIONS:
                if conversation["system"] and spec.question.after_system is None:
                    continue
                found = segments(spec, _open(name), [*map(_turn, conversation["turns"])], conversation["system"])
                cut = [list(s.ids) if isinstance(s, Tokens) else None for s in found]
                yield {"prompt": prompt, "tokenizer": name, **conversation, "segments": cut}


def _turn(told: dict[str, Any]) -> Turn:
    images = [Embeddings(np.zeros((2, 4), np.float32), "image")] * told["images"]
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


def compute(bundle: Path, out: Path) -> None:
    """What this machine computes of a bundle: rows of its golden picture, forced steps, answers."""
    out.mkdir(parents=True, exist_ok=True)
    with load(bundle, threads=2) as session:
        manifest = session.bundle.manifest
        golden = Golden.load(session.bundle.file(manifest.golden))
        rows = session.encode_pixels(golden.pixel_values)
        rows.rows.astype("<f4").tofile(out / "image_embeds.f32")
        cut = manifest.golden_prompt["segments"]
        decoder, steps = session.decoder, []
        decoder.rewind(0)
        logits = decoder.extend([rows if ids is None else Tokens(tuple(ids)) for ids in cut])
        for token in golden.fp32.tokens:
            steps.append(logits.copy())
            logits = decoder.extend([Tokens((int(token),))])
        np.stack([*steps, logits]).astype("<f4").tofile(out / "logits.f32")
        answers = []
        for path in sorted((HERE.parents[1] / "exporters" / "demo" / "pictures").glob("*.png")):
            rgb = np.asarray(image.open_image(path))
            rgb.tofile(out / f"{path.stem}.rgb")
            size = {"picture": path.stem, "width": rgb.shape[1], "height": rgb.shape[0]}
            chat = session.chat(rgb)
            for question in ("What colour is the star?", "What does the sign say?", "How many stars are there?"):
                text = session.ask(rgb, question)
                first = {"text": text, "ids": session.last.token_ids, "stop": session.last.stop_reason}
                answers.append({**size, "question": question, **first, "later": chat.ask(question)})
        texts = [*TEXTS, *fuzzed()[:200]]
        ids = [session.tokenizer.encode(text) for text in texts]
    _older(bundle, out / "schema1")
    here = {"forced": golden.fp32.tokens.tolist(), "answers": answers, "texts": texts, "ids": ids}
    (out / "here.json").write_text(json.dumps(here), encoding="utf-8")


def _older(bundle: Path, out: Path) -> None:
    """A copy as edge-vlm 0.2 would have written it, of a bundle whose prompt schema 1 can tell."""
    shutil.copytree(bundle, out, dirs_exist_ok=True)
    data = json.loads((bundle / MANIFEST).read_bytes())
    prompt = data["prompt"]
    asked = prompt["question"]
    told = {
        "system": asked["after_system"][: -len(asked["first"])],
        "user": asked["first"],
        "assistant": prompt["answer"],
        "generation": prompt["generation"],
        "image": prompt["image"],
    }
    marks = {"system": "{text}", "content": "{text}", "answer": "{text}", "image": "<image>"}
    texts = {name: "".join(p.get("text") or marks[p["slot"]] for p in pieces) for name, pieces in told.items()}
    shared = ("default_system", "image_tokens", "bos_id", "stop_ids", "stop_strings", "golden")
    data["schema"] = 1
    data["prompt"] = {**texts, "end_id": prompt["end_ids"][0], **{name: prompt[name] for name in shared}}
    decoder = data["decoder"]
    for name in ("family", "ffn", "gated"):
        del decoder[name]
    decoder["rope_theta"] = decoder.pop("rope")["theta"]
    del data["vision"]
    for part in data["parts"]:
        del part["weights"]
    np.savez(out / "golden.npz", **safetensors.read(out / data["golden"]["path"]))
    data["golden"] = asdict(describe(out, out / "golden.npz"))
    (out / MANIFEST).write_text(json.dumps(data), encoding="utf-8")


def main(arguments: list[str]) -> None:
    if arguments:
        compute(*map(Path, arguments))
        return
    if not list(FILES.glob("*.json")):
        train()
    for name, text in written().items():
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
