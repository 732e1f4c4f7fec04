"""Write calib_data/ and the three pictures of `make demo`: `python -m exporters.demo.pictures`."""

import hashlib
import json
import random
from pathlib import Path

from exporters.demo.questions import conversation
from exporters.demo.world import Scene, Sign, Thing, draw, scene

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 24
SHOWN = {
    "shapes": Scene(
        (
            Thing("star", "yellow", "large", 1),
            Thing("circle", "red", "large", 3),
            Thing("ring", "purple", "small", 5),
            Thing("square", "blue", "small", 6),
            Thing("triangle", "green", "large", 8),
        ),
        None,
        "shown:shapes",
    ),
    "sign": Scene(
        (Thing("cross", "orange", "small", 0), Thing("circle", "blue", "large", 8)), Sign("OWL", 3), "shown:sign"
    ),
    "number": Scene(
        (Thing("star", "red", "small", 1), Thing("star", "red", "large", 3), Thing("ring", "black", "large", 5)),
        Sign("42", 6),
        "shown:number",
    ),
}


def calibration(folder: Path) -> None:
    """Pictures and two questions about each from the split "calibration", and the checksums of all files."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(PICTURES):
        what = scene("calibration", index)
        name = f"images/{index:02}.png"
        draw(what).save(folder / name, optimize=True)
        for question in conversation(what, random.Random(f"ask:{what.seed}"), 2):
            lines.append(json.dumps({"image": name, "question": question.text, "answer": question.answer}))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = [folder / "prompts.jsonl", *sorted((folder / "images").glob("*.png"))]
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder).as_posix()}" for file in files]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")


def shown(folder: Path) -> None:
    """The pictures that the documentation shows; composed by hand, so no split has them."""
    folder.mkdir(exist_ok=True)
    for name, what in SHOWN.items():
        draw(what).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    calibration(ROOT / "calib_data")
    shown(Path(__file__).parent / "pictures")
