"""Makes the model for MNN, in the peer's own environment: mnn_make.py CHECKPOINT DIR.

DIR/llm is made by MNN's own exporter, with 4-bit weights in blocks of 64, from the decoder as transformers keeps a
Llama; DIR/vision.mnn is made by its converter, with int8 weights, from the encoder and projector as ONNX.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from exporters.sources.checkpoint import Checkpoint, open_checkpoint  # noqa: E402

BLOCK = 64  # weights that share a scale, MNN's default
TOKENIZER = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def vision(checkpoint: Checkpoint, folder: Path) -> None:
    encoder = checkpoint.encoder.load(checkpoint.weights)
    shown = torch.zeros(encoder.view_shape)
    plain = folder / "vision.onnx"
    names = {"input_names": ["pixels"], "output_names": ["embeddings"]}
    torch.onnx.export(encoder.eval(), (shown,), str(plain), dynamo=False, opset_version=17, **names)
    convert = ["-f", "ONNX", "--modelFile", plain, "--MNNModel", folder / "vision.mnn"]
    convert += ["--weightQuantBits", "8", "--transformerFuse"]
    _run([Path(sys.executable).with_name("mnnconvert"), *convert], folder)
    plain.unlink()


def decoder(checkpoint: Checkpoint, folder: Path) -> None:
    """By way of a folder as transformers writes one, which MNN's exporter reads."""
    llama = folder / "llama"
    _as_llama(checkpoint, llama)
    (place,) = importlib.util.find_spec("llmexport").submodule_search_locations  # its own package does not import
    told = ["--path", llama, "--export", "mnn", "--quant_bit", "4", "--quant_block", str(BLOCK)]
    _run([sys.executable, Path(place) / "llmexport.py", *told, "--dst_path", folder / "llm"], folder)
    shutil.rmtree(llama)
    settings = folder / "llm" / "config.json"  # names another kind of tokenizer than this exporter writes
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_file": "tokenizer.txt"}))


def _as_llama(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    config = json.loads((checkpoint.folder / "config.json").read_text())
    told = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps({**config, **told}))
    for name in TOKENIZER:
        if (checkpoint.folder / name).exists():
            shutil.copy(checkpoint.folder / name, folder / name)
    weights = checkpoint.weights
    own = [
        name for name in weights if name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head."))
    ]
    save_file({name: weights[name].half().contiguous() for name in own}, folder / "model.safetensors", {"format": "pt"})


def _run(command: list[str | Path], folder: Path) -> None:
    """Where it may leave its log."""
    subprocess.run([str(word) for word in command], check=True, cwd=folder)


if __name__ == "__main__":
    source, target = sys.argv[1], Path(sys.argv[2]).resolve()
    target.mkdir(parents=True, exist_ok=True)
    opened = open_checkpoint(source)
    (target / "image.json").write_text(json.dumps(asdict(opened.spec.image)))
    with torch.inference_mode():
        if not (target / "vision.mnn").exists():
            vision(opened, target)
        decoder(opened, target)
