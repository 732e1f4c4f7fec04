"""Tiny checkpoints that transformers' InternVL class saves, with tokenizer and processor as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from small_models import randomized

END = "<|im_end|>"
MARKS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
SPECIAL = ("<|endoftext|>", "<|im_start|>", END, *MARKS.values(), "<video>")
ROWS, SIDE, TOKENS, MOST = 400, 56, 4, 6  # of the embedding table; a view's pixels and embeddings; tiles
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": [SIDE, SIDE],
    "patch_size": [14, 14],
    "attention_bias": True,
}
TEXT = {
    "model_type": "qwen2",
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif c['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Saved(NamedTuple):
    folder: Path
    model: Any
    processor: Any  # transformers' own

    def asked(self, messages: list[dict[str, Any]], images: list[Any]) -> Any:
        """What the model is given: ids and pixels."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        return self.processor(text=text, images=images or None, return_tensors="pt", add_special_tokens=False)

    def pixels(self, image: Any, **options: Any) -> Any:
        """float32 `[views, 3, SIDE, SIDE]`."""
        told = {"crop_to_patches": True, **options}
        return np.asarray(self.processor.image_processor(image, return_tensors="np", **told)["pixel_values"])

    @torch.inference_mode()
    def answer(self, given: Any, count: int, end: int) -> list[int]:
        told = {"max_new_tokens": count, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
        said = self.model.generate(**given, **told)
        return [i for i in said[0, given["input_ids"].shape[1] :].tolist() if i != end]


class _WithoutVideos(transformers.InternVLProcessor):
    """Their processor of videos needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if not name.startswith("video")]


def save(folder: Path, tokenizer: Any, *, tiles: tuple[int, int] = (1, MOST), **settings: Any) -> Saved:
    """`settings` are the config's; `text` and `vision` those of its parts. Weights are as half precision holds them.

    tokenizer: of the tokenizers library, with SPECIAL.
    tiles: the fewest and the most of an image.
    """
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    text, seen = TEXT | settings.pop("text", {}), VISION | settings.pop("vision", {})
    own = {"image_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"), "image_seq_length": TOKENS}
    config = transformers.InternVLConfig(
        text_config=text, vision_config=seen, **{**own, "tie_word_embeddings": False, **settings}
    )
    torch.manual_seed(0)
    model = randomized(transformers.InternVLForConditionalGeneration(config))
    for name, parameter in model.named_parameters():  # no token that repeats itself
        if "language_model" in name or "lm_head" in name:
            parameter += (0.05 if "embed" in name else 0.25) * torch.randn(parameter.shape)
        parameter.copy_(parameter.half().float())
    model.tie_weights()
    model.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, extra_special_tokens={**MARKS, "video_token": "<video>"}
    )
    images = GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        min_patches=tiles[0],
        max_patches=tiles[1],
    )
    processor = _WithoutVideos(images, fast, None, image_seq_length=config.image_seq_length, chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    return Saved(folder, model, processor)
