"""Tiny checkpoints that transformers' Idefics3 and SmolVLM classes save, with tokenizer and processor as published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from chat_templates import SMOLVLM
from small_models import randomized

BOS, END = "<|im_start|>", "<end_of_utterance>"
GRIDS = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
SPECIAL = ("<|endoftext|>", BOS, "<|im_end|>", "<fake_token_around_image>", "<image>", END, "<global-img>", *GRIDS)
ROWS, SIDE, LONG = 400, 48, 144  # of the embedding table; a view's pixels, an image's longer edge
TOKENS = 16  # of a view
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 6,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
}


class Saved(NamedTuple):
    folder: Path
    model: Any
    processor: Any  # transformers' own

    def asked(self, messages: list[dict[str, Any]], images: list[Any]) -> Any:
        """What the model is given: ids, pixels and their mask. Each image is one view unless the processor splits."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        return self.processor(text=text, images=images or None, return_tensors="pt", add_special_tokens=False)

    def pixels(self, image: Any) -> Any:
        """float32 `[views, 3, SIDE, SIDE]`."""
        return np.asarray(self.processor.image_processor(image, return_tensors="np")["pixel_values"][0], np.float32)

    @torch.inference_mode()
    def answer(self, given: Any, count: int, end: int) -> list[int]:
        told = {"max_new_tokens": count, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
        said = self.model.generate(**given, **told)
        return [i for i in said[0, given["input_ids"].shape[1] :].tolist() if i != end]


def save(folder: Path, tokenizer: Any, family: str = "SmolVLM", *, splits: bool = False, **settings: Any) -> Saved:
    """`settings` are the config's; `text` and `vision` those of its parts. Weights are as half precision holds them.

    tokenizer: of the tokenizers library, with SPECIAL.
    family: SmolVLM or Idefics3.
    """
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    text, seen = TEXT | settings.pop("text", {}), VISION | settings.pop("vision", {})
    mark = tokenizer.token_to_id("<image>")
    config = getattr(transformers, f"{family}Config")(
        text_config=text, vision_config=seen, **{"image_token_id": mark, "scale_factor": 2, **settings}
    )
    torch.manual_seed(0)
    model = randomized(getattr(transformers, f"{family}ForConditionalGeneration")(config))
    for name, parameter in model.named_parameters():  # no token that repeats itself
        if "text_model" in name or "lm_head" in name:
            parameter += (0.05 if "embed" in name else 0.25) * torch.randn(parameter.shape)
        parameter.copy_(parameter.half().float())
    model.tie_weights()
    model.save_pretrained(folder)
    known = [name for name in SPECIAL if tokenizer.token_to_id(name) is not None]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=END, additional_special_tokens=known
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": LONG},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=splits,
    )
    rows = (seen["image_size"] // seen["patch_size"] // config.scale_factor) ** 2
    processor = transformers.Idefics3Processor(images, fast, image_seq_len=rows, chat_template=SMOLVLM)
    processor.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.token_to_id(END)}))
    return Saved(folder, model, processor)


def change(folder: Path, file: str = "config.json", drop: tuple[str, ...] = (), **changes: Any) -> Path:
    """A file of the folder with other values; a mapping's are added to those that are there."""
    path = folder / file
    told = json.loads(path.read_text()) if path.exists() else {}
    for name, value in changes.items():
        told[name] = {**told.get(name, {}), **value} if isinstance(value, dict) else value
    path.write_text(json.dumps({name: value for name, value in told.items() if name not in drop}))
    return folder


def awkward() -> dict[str, Any]:
    """Twenty images: what each is called -> it, and what a processor that knows neither EXIF nor depth is given."""
    from io import BytesIO

    from PIL import Image, ImageOps

    def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
        channels = {"L": 1, "LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3)
        data = np.random.default_rng(width * 7 + height).integers(0, 256, (height, width, channels), dtype=np.uint8)
        if mode == "CMYK":
            return Image.frombytes("CMYK", (width, height), data.tobytes())
        return Image.fromarray(data[..., 0] if channels == 1 else data)

    palette = noise(60, 41).quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = 3
    turned = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(64, 30).save(turned, "JPEG", quality=100, exif=exif)
    grey = np.asarray(noise(53, 37, "L"))
    made = {
        "one pixel": noise(1, 1),
        "one column": noise(1, 90),
        "one row": noise(90, 1),
        "very wide": noise(900, 3),
        "very tall": noise(2, 700),
        "a view": noise(SIDE, SIDE),
        "a square": noise(LONG, LONG),
        "one off": noise(LONG - 1, LONG),
        "wide": noise(61, 47),
        "tall": noise(38, 83),
        "large": noise(640, 480),
        "large and tall": noise(481, 641),
        "grey": noise(70, 50, "L"),
        "grey and clear": noise(70, 50, "LA"),
        "clear": noise(50, 70, "RGBA"),
        "palette": palette,
        "palette and clear": clear,
        "black and white": noise(40, 70, "L").convert("1"),
    }
    found: dict[str, Any] = {name: (image, image) for name, image in made.items()}
    found["turned"] = turned.getvalue(), ImageOps.exif_transpose(Image.open(turned))
    found["16 bits"] = Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey)
    return found
