"""Peers that have the checkpoint converted: made and timed by programs of ours, each in the peer's own environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from common import HERE, PICTURE, Call, Figures, Unavailable, environment, process_figures, run

# What reads the checkpoint: ours is a Python library.
READING = ("safetensors", "sentencepiece", "tokenizers", "protobuf", "gguf", "jinja2", "pillow", "typer", "rich")


@dataclass(frozen=True)
class Converted:
    """`KEY_make.py CHECKPOINT DIR` makes its model, `KEY_time.py DIR PICTURE THREADS [first]` times it."""

    name: str
    key: str
    packages: tuple[str, ...]
    made: str  # the file that is written last

    def prepare(self, call: Call) -> None:
        python = environment(call.folder / f"{self.key}-venv", *self.packages, *READING)
        if not (self._folder(call) / self.made).exists():
            run([python, HERE / f"{self.key}_make.py", call.checkpoint, self._folder(call)])

    def measure(self, call: Call) -> Figures:
        folder, python = self._folder(call), call.folder / f"{self.key}-venv" / "bin" / "python"
        if not (folder / self.made).exists():
            raise Unavailable("not prepared")
        command = [python, HERE / f"{self.key}_time.py", folder, PICTURE, str(call.threads)]
        found: Figures = json.loads(run(command).stdout.splitlines()[-1])  # a library may say more before
        return found | process_figures([*command, "first"])

    def _folder(self, call: Call) -> Path:
        return call.folder / self.key


CONTESTANTS = (
    Converted(
        "OpenVINO, encoder int8, decoder int4 (group 128)",
        "openvino",
        ("openvino==2026.4.1", "nncf==3.4.0", "torch==2.13.0"),
        "decoder.xml",
    ),
    Converted(
        "MNN, encoder int8 weights, decoder int4 (block 64)",
        "mnn",
        ("MNN==3.6.1", "llmexport==0.0.5", "transformers==5.24.0", "torch==2.13.0", "onnx==1.23.2"),
        "llm/llm.mnn",
    ),
)
