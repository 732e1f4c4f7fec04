"""OpenVINO: the same checkpoint, encoder in int8 by NNCF, decoder in 4 bits, timed by a program of ours."""

from __future__ import annotations

import json

from common import HERE, PICTURE, Call, Figures, Unavailable, environment, process_figures, run

PACKAGES = ("openvino==2026.4.1", "nncf==3.4.0", "torch==2.13.0")
# What reads the checkpoint: ours is a Python library.
READING = ("safetensors", "sentencepiece", "tokenizers", "protobuf", "gguf", "jinja2", "pillow", "typer", "rich")


class OpenVINO:
    name = "OpenVINO, encoder int8, decoder int4 (group 128)"
    key = "openvino"

    def prepare(self, call: Call) -> None:
        python = environment(call.folder / "openvino-venv", *PACKAGES, *READING)
        folder = call.folder / "openvino"
        if not (folder / "decoder.xml").exists():
            run([python, HERE / "openvino_make.py", call.checkpoint, folder])

    def measure(self, call: Call) -> Figures:
        folder, python = call.folder / "openvino", call.folder / "openvino-venv" / "bin" / "python"
        if not (folder / "decoder.xml").exists():
            raise Unavailable("not prepared")
        command = [python, HERE / "openvino_time.py", folder, PICTURE, str(call.threads)]
        found: Figures = json.loads(run(command).stdout)
        return found | process_figures([*command, "first"])


CONTESTANTS = (OpenVINO(),)
