"""Times MNN, in the peer's own environment: mnn_time.py DIR PICTURE THREADS [first].

Prints a JSON object of figures; with `first` it answers one question with one token and ends, as a command line would.
Its decoder takes tokens, so the picture's positions are tokens here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from MNN import expr, llm, nn

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from edge.inputs.image import pixels  # noqa: E402
from edge.spec import ImageSpec  # noqa: E402

PROMPT, ANSWER = 190, 64


class Model:
    def __init__(self, folder: Path, threads: int) -> None:
        runtime = nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "low"},))
        self.vision = nn.load_module_from_file(
            str(folder / "vision.mnn"), ["pixels"], ["embeddings"], runtime_manager=runtime
        )
        self.decoder = llm.create(str(folder / "llm" / "config.json"))
        told = {"backend_type": "cpu", "thread_num": threads, "precision": "low", "memory": "low"}
        self.decoder.set_config(json.dumps(told))
        self.decoder.load()

    def see(self, picture: Any) -> Any:
        shown = expr.const(picture, list(picture.shape), expr.NCHW)
        return np.array(self.vision.forward([shown])[0].read())

    def extend(self, tokens: list[int]) -> int:
        """The next token."""
        return int(np.array(self.decoder.forward(tokens).read()).argmax())


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def first(model: Model, picture: Path, spec: ImageSpec) -> None:
    model.see(pixels(picture, spec))
    model.extend(_prompt())


def decode(model: Model) -> None:
    token = 1
    for _ in range(ANSWER):
        token = model.extend([token])


def measured(model: Model, picture: Path, spec: ImageSpec) -> dict[str, float]:
    shown = pixels(picture, spec)
    first(model, picture, spec)
    decode(model)
    model.decoder.reset()
    found = {"picture": seconds(lambda: model.see(shown))}
    found["prefill"] = PROMPT / seconds(lambda: model.extend(_prompt()))
    found["decode"] = ANSWER / seconds(lambda: decode(model))
    model.decoder.reset()
    found["first"] = seconds(lambda: first(model, picture, spec))
    return found


def _prompt() -> list[int]:
    return list(range(100, 100 + PROMPT))


if __name__ == "__main__":
    begun = time.perf_counter()
    folder, picture, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    told = json.loads((folder / "image.json").read_text())
    spec = ImageSpec(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})
    opened = Model(folder, threads)
    load = time.perf_counter() - begun
    if sys.argv[4:] == ["first"]:
        first(opened, picture, spec)
    else:
        print(json.dumps({"load": load, **measured(opened, picture, spec)}))
