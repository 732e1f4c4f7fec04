"""MNN: the same checkpoint, encoder with int8 weights, decoder in 4 bits by its own exporter; asked by a script."""

from __future__ import annotations

import json

from common import HERE, PICTURE, Call, Figures, Unavailable, environment, process_figures, run
from openvino_peer import READING

PACKAGES = ("MNN==3.6.1", "llmexport==0.0.5", "transformers==5.24.0", "torch==2.13.0", "onnx==1.23.2")


class MNN:
    name = "MNN, encoder int8 weights, decoder int4 (block 64)"
    key = "mnn"

    def prepare(self, call: Call) -> None:
        python = environment(call.folder / "mnn-venv", *PACKAGES, *READING)
        folder = call.folder / "mnn"
        if not (folder / "llm" / "llm.mnn").exists():
            run([python, HERE / "mnn_make.py", call.checkpoint, folder])

    def measure(self, call: Call) -> Figures:
        folder, python = call.folder / "mnn", call.folder / "mnn-venv" / "bin" / "python"
        if not (folder / "llm" / "llm.mnn").exists():
            raise Unavailable("not prepared")
        command = [python, HERE / "mnn_time.py", folder, PICTURE, str(call.threads)]
        found: Figures = json.loads(run(command).stdout.splitlines()[-1])  # the library says more before
        return found | process_figures([*command, "first"])


CONTESTANTS = (MNN(),)
