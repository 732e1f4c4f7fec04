"""What the programs that time a converted peer share: their arguments, how long something takes, and what they print.

PROGRAM DIR PICTURE THREADS [first] prints a JSON object of figures; with `first` it answers one question with one token
and ends, as a command line would.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from edge.spec import ImageSpec  # noqa: E402

PROMPT, ANSWER = 190, 64
Model = TypeVar("Model")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(
    opened: Callable[[Path, int], Model],
    first: Callable[[Model, Path, ImageSpec], object],
    measured: Callable[[Model, Path, ImageSpec], dict[str, float]],
) -> None:
    begun = time.perf_counter()
    folder, picture, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    told = json.loads((folder / "image.json").read_text())
    spec = ImageSpec(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})
    model = opened(folder, threads)
    load = time.perf_counter() - begun
    if sys.argv[4:] == ["first"]:
        first(model, picture, spec)
    else:
        print(json.dumps({"load": load, **measured(model, picture, spec)}))
