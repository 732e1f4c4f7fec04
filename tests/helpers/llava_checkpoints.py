"""Tiny checkpoints that transformers' LlavaForConditionalGeneration saves, with a tokenizer and a processor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_models import randomized

DATA = Path(__file__).parents[1] / "data"
IMAGE, ROWS = 480, 512  # the id of <image>, the rows of the embedding table
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def save(
    folder: Path, *, siglip: bool = False, language: str = "Llama", text: dict[str, Any] | None = None, **settings: Any
) -> Any:
    """Writes the checkpoint; gives the model. `settings` are LlavaConfig's."""
    import transformers
    from transformers import (
        CLIPVisionConfig,
        LlamaTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    seen = (SiglipVisionConfig if siglip else CLIPVisionConfig)(**VISION)
    config = LlavaConfig(
        vision_config=seen,
        text_config=getattr(transformers, f"{language}Config")(**TEXT, **(text or {})),
        **{"image_token_index": IMAGE, **settings},
    )
    torch.manual_seed(0)
    model = randomized(LlavaForConditionalGeneration(config))
    model.tie_weights()
    model.save_pretrained(folder)
    shutil.copy(DATA / "tokenizer.model", folder)
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    side = VISION["image_size"]
    square = {"height": side, "width": side}
    processor = (
        SiglipImageProcessorPil(size=square)
        if siglip
        else CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    )
    processor.save_pretrained(folder)
    return model


def respell(source: Path, folder: Path, spelling: str) -> Path:
    """A copy whose weights bear the names that other versions of transformers give them."""
    shutil.copytree(source, folder)
    renamed = {
        "as saved": lambda name: name,
        "4": lambda name: name.replace("vision_tower.", "vision_tower.vision_model.", 1),
        "5": lambda name: (
            "model." + name.replace("language_model.model.", "language_model.", 1)
            if "lm_head" not in name
            else "lm_head.weight"
        ),
        "5 with vision_model": lambda name: (
            "model."
            + name.replace("language_model.model.", "language_model.", 1).replace(
                "vision_tower.", "vision_tower.vision_model.", 1
            )
            if "lm_head" not in name
            else "lm_head.weight"
        ),
    }[spelling]
    tensors = {renamed(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def change(folder: Path, file: str = "config.json", drop: tuple[str, ...] = (), **changes: Any) -> Path:
    path = folder / file
    told = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({name: value for name, value in told.items() if name not in drop}))
    return folder
