"""Write a trained model as a MobileVLM V2 checkpoint, file for file as upstream publishes one:
`python -m exporters.demo.saving --out DIR`, the working directory of the training.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporters.demo.joint import Whole
from exporters.demo.model import VARIANTS, Eye, Shape
from exporters.demo.prompts import Prompter

CHECKPOINT = Path(__file__).parent / "checkpoint"
TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."


def write(module: Whole, shape: Shape, folder: Path) -> None:
    """Weights in float16, the configs and the demo's tokenizer; each file is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.model").exists():
        shutil.copyfile(CHECKPOINT / "tokenizer.model", folder / "tokenizer.model")
    beside = folder / "model.part"
    save_file(tensors(module), beside, metadata={"format": "pt"})
    beside.chmod(0o644)  # safetensors writes for the owner only
    os.replace(beside, folder / "model.safetensors")
    for name, content in {
        "config.json": config(shape),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "legacy": True,
            "model_max_length": shape.context,
            "tokenizer_class": "LlamaTokenizer",
        },
    }.items():
        beside = folder / (name + ".part")
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(beside, folder / name)
    shutil.copyfile(Path(__file__).parent / "CHECKPOINT.md", folder / "README.md")


def tensors(module: Whole) -> dict[str, Tensor]:
    """All weights under their published names, float16."""
    named = {TOWER + name: tensor for name, tensor in module.eye.tower.state_dict().items()}
    named |= {PROJECTOR + name: tensor for name, tensor in module.eye.projector.state_dict().items()}
    named |= dict(module.decoder.state_dict())
    return {name: tensor.to(torch.float16).contiguous() for name, tensor in named.items() if tensor.is_floating_point()}


def config(shape: Shape) -> dict[str, object]:
    """config.json; `vision_config` says what upstream leaves to the tower's name: this tower is no published one."""
    return {
        "architectures": ["MobileLlamaForCausalLM"],
        "model_type": "mobilevlm",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.context,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": shape.vocab,
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": shape.tower_width,
        "mm_projector_type": "ldpnetv2",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "vision_tower_type": "clip",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "hidden_size": shape.tower_width,
            "image_size": 336,
            "intermediate_size": 4 * shape.tower_width,
            "layer_norm_eps": 1e-5,
            "num_attention_heads": shape.tower_heads,
            "num_channels": 3,
            "num_hidden_layers": shape.tower_layers,
            "patch_size": 14,
        },
    }


def keep_tower(eye: Eye) -> None:
    """The demo checkpoint's tower, not to be trained on."""
    stored = load_file(CHECKPOINT / "model.safetensors")
    own = {name.removeprefix(TOWER): tensor for name, tensor in stored.items() if name.startswith(TOWER)}
    eye.tower.load_state_dict(own)
    eye.tower.requires_grad_(False)


def trained(out: Path, shape: Shape) -> Whole:
    """What the joint stage has saved; before its first state, the eye and the decoder that it would start from."""
    module = Whole(shape)
    if (out / "joint.pt").exists():
        module.load_state_dict(torch.load(out / "joint.pt", map_location="cpu")["module"])
    else:
        module.eye.load_state_dict(torch.load(out / "eye.pt", map_location="cpu")["module"])
        module.decoder.load_state_dict(torch.load(out / "language.pt", map_location="cpu")["module"])
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="where to; the demo's own")
    parser.add_argument("--variant", choices=VARIANTS, default="demo")
    args = parser.parse_args()
    vocab = Prompter(CHECKPOINT / "tokenizer.model").pieces.get_piece_size()
    sizes = Shape(vocab, **VARIANTS[args.variant])
    write(trained(args.out, sizes), sizes, args.checkpoint)
