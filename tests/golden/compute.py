"""What this machine computes of a bundle, for run sides in other languages: compute.py BUNDLE OUT [PICTURE].

OUT gets little-endian float32, `here.json`, a copy of the bundle in schema 1 and one that divides images into tiles.
Another language on the same library gives the same bits. With PICTURE, `shapes`: less, as an emulator has time for.
"""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
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
    """Rows of the golden picture, forced steps, answers about each picture, and what the copies give."""
    with load(bundle, threads=2) as session:
        forced = _forced(session, out)
        answers = [entry for path in sorted(PICTURES.glob("*.png")) for entry in _answers(session, out, path)]
        texts = [*TEXTS, *fuzzed()[:200]]
        ids = [session.tokenizer.encode(text) for text in texts]
    _older(bundle, out / "schema1")
    _pack(bundle, out)
    _tiled(bundle, out / "tiled")
    with load(out / "tiled", threads=2) as session:
        tiled = [{**entry, **_asked(session, out, entry)} for entry in answers[::3]]
    _tell(out, {"forced": forced, "answers": answers, "tiled": tiled, "texts": texts, "ids": ids})


def compute_some(bundle: Path, out: Path, picture: str) -> None:
    """Rows, forced steps and the answers about one picture, on one thread: for an emulated processor."""
    with load(bundle, threads=1) as session:
        forced = _forced(session, out)
        _tell(out, {"forced": forced, "answers": _answers(session, out, PICTURES / f"{picture}.png")})


def _forced(session: Session, out: Path) -> list[int]:
    """The tokens that the decoder was fed after the golden prompt; rows and logits are in files."""
    out.mkdir(parents=True, exist_ok=True)
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
    return [int(token) for token in golden.fp32.tokens]


def _answers(session: Session, out: Path, path: Path) -> list[dict[str, Any]]:
    rgb = np.asarray(image.open_image(path))
    rgb.tofile(out / f"{path.stem}.rgb")
    size = {"picture": path.stem, "width": rgb.shape[1], "height": rgb.shape[0]}
    chat, found = session.chat(rgb), []
    for question in QUESTIONS:
        text = session.ask(rgb, question)
        first = {"text": text, "ids": session.last.token_ids, "stop": session.last.stop_reason}
        found.append({**size, "question": question, **first, "later": chat.ask(question)})
    return found


def _tell(out: Path, here: dict[str, Any]) -> None:
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


def _pack(bundle: Path, out: Path) -> None:
    """Zips: `packed` of a folder with the bundle, `wide` with numbers of 64 bits as of gigabytes, `small` of texts."""
    with zipfile.ZipFile(out / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in bundle.iterdir():
            stored = path.suffix == ".npy"
            archive.write(path, f"demo/{path.name}", zipfile.ZIP_STORED if stored else None)
        archive.writestr("demo/../../evil", "no file of the manifest")
        archive.comment = b"of a test"
    limit, zipfile.ZIP64_LIMIT = zipfile.ZIP64_LIMIT, 1
    try:
        with zipfile.ZipFile(out / "wide.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
            for path in bundle.iterdir():
                archive.write(path, path.name)
    finally:
        zipfile.ZIP64_LIMIT = limit
    texts = {"empty": "", "short": "a", "again": "again and " * 40_000, "all": "".join(map(chr, range(32, 9000)))}
    with zipfile.ZipFile(out / "small.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)


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
    if len(sys.argv) > 3:
        compute_some(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    else:
        compute(Path(sys.argv[1]), Path(sys.argv[2]))
