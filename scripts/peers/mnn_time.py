"""Times MNN, in the peer's own environment: mnn_time.py DIR PICTURE THREADS [first].

Prints a JSON object of figures; with `first` it answers one question with one token and ends, as a command line would.
Its decoder takes tokens, so the picture's positions are tokens here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from asked import ANSWER, PROMPT, main, seconds
from MNN import expr, llm, nn

from edge.inputs.image import pixels
from edge.spec import ImageSpec


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
    main(Model, first, measured)
