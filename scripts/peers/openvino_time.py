"""Times OpenVINO, in the peer's own environment: openvino_time.py DIR PICTURE THREADS [first].

Prints a JSON object of figures; with `first` it answers one question with one token and ends, as a command line would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from asked import ANSWER, PROMPT, main, seconds

from edge.inputs.image import pixels
from edge.spec import ImageSpec


class Model:
    def __init__(self, folder: Path, threads: int) -> None:
        core, settings = ov.Core(), {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self.vision = core.compile_model(folder / "vision.xml", "CPU", settings).create_infer_request()
        self.decoder = core.compile_model(folder / "decoder.xml", "CPU", settings).create_infer_request()
        self.table = np.load(folder / "embeddings.npy", mmap_mode="r")
        turns = np.load(folder / "rotations.npz")
        self.cos, self.sin = turns["cos"], turns["sin"]
        self.position = 0

    def see(self, picture: Any) -> Any:
        return self.vision.infer([picture])[0]

    def forget(self) -> None:
        self.decoder.reset_state()
        self.position = 0

    def extend(self, rows: Any) -> Any:
        """Logits after rows `[1, S, hidden]`."""
        before, end = self.position, self.position + rows.shape[1]
        mask = np.triu(np.full((rows.shape[1], end), -np.inf, np.float32), before + 1)[None, None]
        feeds = {
            "inputs_embeds": rows,
            "mask": mask,
            "cos": self.cos[None, None, before:end],
            "sin": self.sin[None, None, before:end],
            "beam_idx": np.zeros(1, np.int32),
        }
        self.position = end
        return self.decoder.infer(feeds)["logits"]

    def rows(self, count: int) -> Any:
        return self.table[np.arange(count) % len(self.table)].astype(np.float32)[None]


def first(model: Model, picture: Path, spec: ImageSpec) -> None:
    seen = model.see(pixels(picture, spec))
    text = model.rows(PROMPT - seen.shape[1])
    model.extend(np.concatenate([text, seen], axis=1)).argmax()


def decode(model: Model) -> None:
    token = 1
    for _ in range(ANSWER):
        token = int(model.extend(model.table[token].astype(np.float32)[None, None]).argmax())


def measured(model: Model, picture: Path, spec: ImageSpec) -> dict[str, float]:
    shown, prompt = pixels(picture, spec), model.rows(PROMPT)
    first(model, picture, spec)
    model.extend(model.rows(1))
    found = {"picture": seconds(lambda: model.see(shown))}
    model.forget()
    found["prefill"] = PROMPT / seconds(lambda: model.extend(prompt))
    found["decode"] = ANSWER / seconds(lambda: decode(model))
    model.forget()
    found["first"] = seconds(lambda: first(model, picture, spec))
    return found


if __name__ == "__main__":
    main(Model, first, measured)
