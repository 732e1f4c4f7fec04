"""Tiny checkpoints in LLaVA's own layout, of transformers' language models and vision encoders, as Bunny's and
nanoLLaVA's code saves them, and what that code computes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import randomized
from torch import nn

TOWER = "google/siglip-so400m-patch14-384"
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


class Kin(NamedTuple):
    folder: Path
    language: Any
    tower: Any
    projector: nn.Sequential
    processor: Any

    def pixels(self, image: Image.Image, pad: bool) -> torch.Tensor:
        """`[1, 3, H, W]`; padded images lie in the middle of a square of the mean colour."""
        if pad:
            side = max(image.size)
            square = Image.new("RGB", (side, side), tuple(int(part * 255) for part in self.processor.image_mean))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        return torch.as_tensor(self.processor(image, return_tensors="pt")["pixel_values"])

    @torch.inference_mode()
    def embeddings(self, pixels: torch.Tensor, first: int = 0) -> torch.Tensor:
        """`[N, hidden]`, from the patch `first` on."""
        return self.projector(self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, first:])[0]

    @torch.inference_mode()
    def answer(self, before: list[int], rows: torch.Tensor, after: list[int], ends: set[int], most: int) -> list[int]:
        """Greedy tokens after ids, the rows of an image, and ids."""
        table = self.language.get_input_embeddings()
        rows = rows * getattr(table, "scalar_embed_scale", 1.0)  # of Gemma, whose code scaled all that went in
        given = torch.cat([table(torch.tensor(before)), rows, table(torch.tensor(after))])[None]
        told: list[int] = []
        while len(told) < most and not (told and told[-1] in ends):
            logits = self.language(inputs_embeds=given).logits[0, -1]
            told.append(int(logits.argmax()))
            given = torch.cat([given, table(torch.tensor([told[-1:]]))], dim=1)
        return told


def save(folder: Path, model_type: str, kind: str, tokenizer_json: str, end: str, **said: Any) -> Kin:
    """`kind`: the name that transformers' classes of the language model begin with. `said` goes into config.json; keys
    of the language model's config are its own."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(0)
    known = getattr(transformers, f"{kind}Config")
    own = {name: said.pop(name) for name in list(said) if name in known().to_dict()}
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 511}
    config = known(**TEXT | special | own)
    language = randomized(getattr(transformers, f"{kind}ForCausalLM")(config))
    tower = randomized(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION)))
    wide, hidden = VISION["hidden_size"], config.hidden_size
    projector = randomized(nn.Sequential(nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, hidden)))
    tensors = dict(language.state_dict())
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    tensors |= {f"model.mm_projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    for name, tensor in tower.state_dict().items():
        tensors["model.vision_tower.vision_tower.vision_model." + name.removeprefix("vision_model.")] = tensor
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    layout = {
        "model_type": model_type,
        "mm_vision_tower": TOWER,
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": wide,
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
    }
    (folder / "config.json").write_text(json.dumps(json.loads(config.to_json_string(use_diff=False)) | layout | said))
    (folder / "tokenizer.json").write_text(tokenizer_json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end, "add_bos_token": False}))
    beside = folder.parent / TOWER.rpartition("/")[2]
    tower.config.save_pretrained(beside)
    side = VISION["image_size"]
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    processor.save_pretrained(beside)
    return Kin(folder, language, tower, projector, processor)


def as_factory(kin: Kin, **said: Any) -> Kin:
    """The same model as TinyLLaVA-Factory saves it."""
    renamed = {"model.mm_projector.": "connector._connector.", "model.vision_tower.": "vision_tower._"}
    path, tensors = kin.folder / "model.safetensors", {}
    for name, tensor in load_file(path).items():
        prefix = next((prefix for prefix in renamed if name.startswith(prefix)), "")
        tensors[renamed.get(prefix, "language_model.") + name.removeprefix(prefix)] = tensor
    save_file(tensors, path)
    text, seen = (json.loads(part.config.to_json_string()) for part in (kin.language, kin.tower))
    config = {
        "model_type": "tinyllava",
        "llm_model_name_or_path": "some/language-model",
        "vision_model_name_or_path": TOWER,
        "vision_model_name_or_path2": "",
        "connector_type": "mlp2x_gelu",
        "image_aspect_ratio": "square",
        "image_token_index": -200,
        "num_queries": 128,
        "num_resampler_layers": 3,
        "text_config": text,
        "tune_type_vision_tower": "frozen",
        "vision_config": seen | {"model_name_or_path": TOWER, "model_name_or_path2": ""},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "vision_hidden_size": VISION["hidden_size"],
    }
    (kin.folder / "config.json").write_text(json.dumps(config | said))
    return kin
