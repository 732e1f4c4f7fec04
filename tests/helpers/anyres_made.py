"""Tiny checkpoints that transformers' LlavaNext and LlavaOnevision classes save, with processors as published; and the
same in LLaVA's own layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from llava_checkpoints import TEXT, VISION
from safetensors.torch import load_file, save_file
from small_models import randomized

SIDE, GRID = VISION["image_size"], 4  # pixels and embeddings along the edge of a view
ROWS, END = 400, "<|im_end|>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", END, "<image>", "<video>")
NEXT_POINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
ONEVISION_POINTS = [[SIDE * high, SIDE * wide] for high in range(1, 5) for wide in range(1, 5)]
_IMAGES = "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}"
_TEXTS = "{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
ONEVISION = (  # as llava-hf's, which writes images first
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + ' '}}" + _IMAGES + "{{ '<image>' }}" + _TEXTS
    + "{{ '\n' + c['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
NEXT = (  # as llava-v1.6-vicuna's
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    + _IMAGES + "{{ '<image>\n' }}" + _TEXTS
    + "{{ c['text'] + ' ' }}{% endfor %}{% if m['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)  # fmt: skip


class Saved(NamedTuple):
    folder: Path
    model: Any
    processor: Any  # transformers' own

    def asked(self, messages: list[dict[str, Any]], images: list[Any]) -> Any:
        """What the model is given: ids, pixels, sizes."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        return self.processor(text=text, images=images or None, return_tensors="pt", add_special_tokens=False)

    def pixels(self, image: Any) -> Any:
        """float32 `[views, 3, SIDE, SIDE]`."""
        return np.asarray(self.processor.image_processor(image, return_tensors="np")["pixel_values"][0], np.float32)

    @torch.inference_mode()
    def embeddings(self, image: Any) -> Any:
        """float32 `[N, hidden]`, as the model joins them."""
        given = self.processor.image_processor(image, return_tensors="pt")
        given.pop("batch_num_images", None)
        return self.model.get_image_features(**given).pooler_output[0].numpy()

    @torch.inference_mode()
    def answer(self, given: Any, count: int, end: int) -> list[int]:
        told = {"max_new_tokens": count, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
        said = self.model.generate(**given, **told)
        return [i for i in said[0, given["input_ids"].shape[1] :].tolist() if i != end]


class _WithoutVideos(transformers.LlavaOnevisionProcessor):
    """Their processor of videos needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if not name.startswith("video")]


def save(folder: Path, tokenizer: Any, kind: str = "Onevision", **settings: Any) -> Saved:
    """kind: Onevision (SigLIP, Qwen2) or Next (CLIP, Llama). tokenizer: of the tokenizers library, with SPECIAL."""
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    one = kind == "Onevision"
    seen = (transformers.SiglipVisionConfig if one else transformers.CLIPVisionConfig)(**VISION)
    text = {**TEXT, "vocab_size": ROWS, "max_position_embeddings": 2048, **settings.pop("text", {})}
    points = ONEVISION_POINTS if one else NEXT_POINTS
    own = {"image_grid_pinpoints": points, "image_token_index": tokenizer.token_to_id("<image>")}
    if one:
        own |= {"vision_aspect_ratio": "anyres_max_4", "video_token_index": tokenizer.token_to_id("<video>")}
    config = getattr(transformers, f"Llava{kind}Config")(
        vision_config=seen,
        text_config=(transformers.Qwen2Config if one else transformers.LlamaConfig)(**text),
        **{**own, **settings},
    )
    torch.manual_seed(0)
    model = randomized(getattr(transformers, f"Llava{kind}ForConditionalGeneration")(config))
    for name, parameter in model.named_parameters():  # no token that repeats itself
        if "language_model" in name or "lm_head" in name:
            parameter.data += (0.05 if "embed" in name else 0.25) * torch.randn(parameter.shape)
        parameter.data.copy_(parameter.data.half().float())
    model.tie_weights()
    model.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, additional_special_tokens=list(SPECIAL)
    )
    square = {"height": SIDE, "width": SIDE}
    if one:
        images = LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=points, image_mean=[0.5] * 3)
        processor = _WithoutVideos(
            images,
            fast,
            None,
            num_image_tokens=GRID**2,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_4",
            chat_template=ONEVISION,
        )
    else:
        images = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=points)
        processor = transformers.LlavaNextProcessor(
            images,
            fast,
            patch_size=VISION["patch_size"],
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=NEXT,
        )
    processor.save_pretrained(folder)
    return Saved(folder, model, processor)


def as_llava(saved: Saved, folder: Path, model_type: str, aspect: str, **said: Any) -> Path:
    """The same model as LLaVA's own code saves it: pinpoints are its ranges of grids, or pairs that begin with the
    width."""
    shutil.copytree(saved.folder, folder)
    spelled = {
        "language_model.": "",
        "multi_modal_projector.linear_1": "model.mm_projector.0",
        "multi_modal_projector.linear_2": "model.mm_projector.2",
        "vision_tower.vision_model.": "model.vision_tower.vision_tower.vision_model.",
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "image_newline": "model.image_newline",
    }
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        prefix = next(prefix for prefix in spelled if name.startswith(prefix))
        tensors[spelled[prefix] + name.removeprefix(prefix)] = tensor
    save_file(tensors, folder / "model.safetensors")
    told = json.loads((folder / "config.json").read_text())
    tower = "google/siglip-tiny" if told["model_type"] == "llava_onevision" else "openai/clip-tiny"
    layer = told["vision_feature_layer"]
    config = {
        **told["text_config"],
        "model_type": model_type,
        "mm_vision_tower": tower,
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": VISION["hidden_size"],
        "mm_vision_select_layer": layer,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear",
        "mm_use_im_start_end": False,
        "image_aspect_ratio": aspect,
        "image_grid_pinpoints": [pair[::-1] for pair in told["image_grid_pinpoints"]],
        "vision_config": told["vision_config"],
    }
    (folder / "config.json").write_text(json.dumps(config | said))
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    beside = "SiglipImageProcessor" if "siglip" in tower else "CLIPImageProcessor"
    size = {"height": SIDE, "width": SIDE} if "siglip" in tower else {"shortest_edge": SIDE}
    processor = saved.processor.image_processor
    pre = {"image_processor_type": beside, "size": size, "resample": 3}
    pre |= {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
    if "clip" in tower:
        pre["crop_size"] = SIDE
    (folder / "preprocessor_config.json").write_text(json.dumps(pre))
    return folder
