"""What this machine computes of a bundle, for run sides in other languages: compute.py BUNDLE OUT.

OUT gets little-endian float32, `here.json`, a copy of the bundle in schema 1 and one that divides images into tiles.
Another language on the same library gives the same bits.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from write import TEXTS, fuzzed

from edge.bundle import safetensors
from edge.bundle.golden import Golden
from edge.bundle.manifest import MANIFEST, describe
from edge.inference.session import Session, load
from edge.inputs import image
from edge.types import Tokens

PICTURES = Path(__file__).parents[2] / "exporters" / "demo" / "pictures"
QUESTIONS = ("What colour is the star?", "What does the sign say?", "How many stars are there?")


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
        for path in sorted(PICTURES.glob("*.png")):
            rgb = np.asarray(image.open_image(path))
            rgb.tofile(out / f"{path.stem}.rgb")
            size = {"picture": path.stem, "width": rgb.shape[1], "height": rgb.shape[0]}
            chat = session.chat(rgb)
            for question in QUESTIONS:
                text = session.ask(rgb, question)
                first = {"text": text, "ids": session.last.token_ids, "stop": session.last.stop_reason}
                answers.append({**size, "question": question, **first, "later": chat.ask(question)})
        texts = [*TEXTS, *fuzzed()[:200]]
        ids = [session.tokenizer.encode(text) for text in texts]
    _older(bundle, out / "schema1")
    _tiled(bundle, out / "tiled")
    with load(out / "tiled", threads=2) as session:
        tiled = [{**entry, **_asked(session, out, entry)} for entry in answers[::3]]
    here = {"forced": golden.fp32.tokens.tolist(), "answers": answers, "tiled": tiled, "texts": texts, "ids": ids}
    (out / "here.json").write_text(json.dumps(here), encoding="utf-8")


def _asked(session: Session, out: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """The same question again, with the picture as this session divides it."""
    rgb = np.fromfile(out / f"{entry['picture']}.rgb", np.uint8).reshape(entry["height"], entry["width"], 3)
    chat, grid = session.chat(rgb), session.views(rgb).grid
    text = chat.ask(entry["question"], max_tokens=24)
    return {"grid": grid, "text": text, "ids": session.last.token_ids, "later": chat.ask("Why?", max_tokens=24)}


def _tiled(bundle: Path, out: Path) -> None:
    """A copy that divides images into tiles, which its model never learned to see."""
    shutil.copytree(bundle, out, dirs_exist_ok=True)
    data = json.loads((bundle / MANIFEST).read_bytes())
    data["image"] |= {"fit": "long_edge", "long_edge": 2 * data["image"]["size"], "resample": "lanczos"}
    data["image"]["views"] = {"grid": 2, "image_tokens": None}
    tile, whole = [{"text": "tile "}, {"slot": "image"}], data["prompt"]["image"]
    data["prompt"]["views"] = {"tiles": [[tile] * 2] * 2, "row_end": [{"text": "\n"}], "overview": whole}
    (out / MANIFEST).write_text(json.dumps(data), encoding="utf-8")


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


if __name__ == "__main__":
    compute(*map(Path, sys.argv[1:]))
