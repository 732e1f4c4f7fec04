"""Tiny checkpoints in the layout of MiniCPM-V, and what its own code computes of them, put together anew.

The vision tower is transformers' Idefics2's, which is the same NaViT, and sees each slice as a picture of its own
size: nothing is packed or filled up. The resampler is written from its definition (arXiv 2408.01800, section 3.2; the
model's published code), the decoders are transformers' own. Slices are those of transformers' MiniCPM-V 4.6, of the
same authors, whose edges are multiples of two patches: of patches half as large here, so that the sizes are ours.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from small_models import randomized
from torch import nn

END = "<|im_end|>"
MARKS = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>", "<unk>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", END, *MARKS)
ROWS, SIDE, PATCH, TABLE, TOKENS, MOST = 400, 56, 14, 9, 4, 9  # TOKENS: embeddings of a view
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": TABLE * PATCH,
    "patch_size": PATCH,
    "model_type": "siglip",
}
TEXT = {
    "vocab_size": ROWS,
    "hidden_size": 256,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
}
CONFIG = {
    "model_type": "minicpmv",
    "architectures": ["MiniCPMV"],
    "version": 2.6,
    "image_size": 448,
    "patch_size": PATCH,
    "query_num": TOKENS,
    "slice_config": {"max_slice_nums": MOST, "patch_size": PATCH, "model_type": "minicpmv"},
    "slice_mode": True,
    "use_image_id": True,
    "batch_vision_input": True,
    "drop_vision_last_layer": False,
    "vision_batch_size": 16,
}
PROCESSOR = {
    "image_processor_type": "MiniCPMVImageProcessor",
    "processor_class": "MiniCPMVProcessor",
    "auto_map": {"AutoImageProcessor": "image_processing_minicpmv.MiniCPMVImageProcessor"},
    "max_slice_nums": MOST,
    "scale_resolution": SIDE,
    "patch_size": PATCH,
    "use_image_id": True,
    "image_feature_size": TOKENS,
    "im_start": "<image>",
    "im_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "unk": "<unk>",
    "im_id_start": "<image_id>",
    "im_id_end": "</image_id>",
    "slice_mode": True,
    "norm_mean": [0.5, 0.5, 0.5],
    "norm_std": [0.5, 0.5, 0.5],
    "version": 2.6,
}
TEMPLATE = (  # Qwen2's
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Resampler(nn.Module):
    """Queries read what an encoder gives of a slice of rows x columns patches."""

    def __init__(self, queries: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(queries, hidden))
        if inputs != hidden:
            self.kv_proj = nn.Linear(inputs, hidden, bias=False)
        self.attn = nn.MultiheadAttention(hidden, hidden // 128)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(hidden, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.zeros(hidden, hidden))

    def forward(self, x: Any, rows: int, columns: int) -> Any:
        """[rows * columns, inputs] -> [queries, hidden]"""
        x = self.ln_kv(self.kv_proj(x) if hasattr(self, "kv_proj") else x)
        places = torch.tensor(_sines_2d(rows, columns, x.shape[-1])).float()
        seen, _ = self.attn(self.ln_q(self.query), x + places, x, need_weights=False)
        return self.ln_post(seen) @ self.proj


def _sines_2d(rows: int, columns: int, width: int) -> list[list[float]]:
    """Number by number: of a patch's column, then of its row, the sines and the cosines."""
    quarter = width // 4

    def line(place: int) -> list[float]:
        angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
        return [*map(math.sin, angles), *map(math.cos, angles)]

    return [line(column) + line(row) for row in range(rows) for column in range(columns)]


class Model(nn.Module):
    def __init__(self, config: dict[str, Any], llm: Any) -> None:
        super().__init__()
        from transformers.models.idefics2 import Idefics2VisionConfig
        from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

        told = {name: value for name, value in config["vision_config"].items() if name != "model_type"}
        self.vpm = Idefics2VisionTransformer(Idefics2VisionConfig(**told))
        if config["drop_vision_last_layer"]:
            self.vpm.encoder.layers = self.vpm.encoder.layers[:-1]
        hidden = config["hidden_size"]
        self.resampler = Resampler(config["query_num"], told["hidden_size"], hidden)
        self.llm = llm(hidden)

    @torch.inference_mode()
    def see(self, slices: list[Any]) -> Any:
        """Images float32 [3, H, W] -> [slices * queries, hidden]."""
        found = []
        for image in slices:
            seen = self.vpm(torch.from_numpy(image)[None]).last_hidden_state[0]
            found.append(self.resampler(seen, image.shape[1] // PATCH, image.shape[2] // PATCH))
        return torch.cat(found)

    @torch.inference_mode()
    def answer(self, ids: list[int], rows: Any, mark: int, count: int, end: int) -> list[int]:
        """Greedy tokens after ids, in which each `mark` is one of the rows."""
        embeds = self.llm.get_input_embeddings()(torch.tensor(ids))
        embeds[torch.tensor(ids) == mark] = rows
        told = {"max_new_tokens": count, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
        said = self.llm.generate(inputs_embeds=embeds[None], attention_mask=torch.ones(1, len(ids)), **told)
        return [i for i in said[0].tolist() if i != end]


class Saved(NamedTuple):
    folder: Path
    model: Model
    tokenizer: Any  # of transformers

    def slices(self, image: Any, most: int = MOST) -> tuple[list[Any], tuple[int, int]]:
        """The whole and the slices, float32 [3, H, W] each, and rows and columns of these, 0 and 0 where there are
        none."""
        from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

        small = PATCH // 2
        told = {"max_slice_nums": most, "scale_resolution": SIDE, "patch_size": small, "downsample_mode": "4x"}
        made = MiniCPMV4_6ImageProcessorPil()(image, return_tensors="np", **told)
        strip, found, at = np.asarray(made["pixel_values"])[0], [], 0
        for rows, columns in made["target_sizes"].tolist():
            packed = strip[:, :, at : at + rows * columns * small].reshape(3, small, rows, columns, small)
            found.append(packed.transpose(0, 2, 1, 3, 4).reshape(3, rows * small, columns * small))
            at += rows * columns * small
        rows, columns = made["grids"][0]
        return [np.ascontiguousarray(one, np.float32) for one in found], (rows, columns)

    def ids(self, talk: list[dict[str, Any]], grid: tuple[int, int]) -> list[int]:
        """Of messages whose contents are lists of texts and of None, an image that is cut by this grid. Each content is
        joined by line breaks, and an image's mark replaced by what the processor writes, as the model's chat does."""
        image = "(<image>./</image>)"
        said = [
            {"role": one["role"], "content": "\n".join(image if c is None else c for c in one["content"])}
            for one in talk
        ]
        first, *rest = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True).split(image)
        text = first + "".join(f"{_written(number, grid)}{after}" for number, after in enumerate(rest))
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _written(number: int, grid: tuple[int, int]) -> str:
    rows = "<unk>" * TOKENS
    lines = ["".join([f"<slice>{rows}</slice>"] * grid[1])] * grid[0]
    return f"<image_id>{number}</image_id><image>{rows}</image>" + "\n".join(lines)


def save(folder: Path, tokenizer: Any, *, processor: dict[str, Any] | None = None, **settings: Any) -> Saved:
    """`settings` are the config's; `text` and `vision` those of its parts. Weights are as half precision holds them.

    tokenizer: of the tokenizers library, with SPECIAL.
    """
    text, seen = TEXT | settings.pop("text", {}), VISION | settings.pop("vision", {})
    config = {**CONFIG, **text, "vision_config": seen, **settings, "eos_token_id": tokenizer.token_to_id(END)}
    kinds = {"2.6": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM)}
    kind, of = kinds.get(str(config["version"]), (transformers.LlamaConfig, transformers.LlamaForCausalLM))
    torch.manual_seed(0)
    model = randomized(Model(config, lambda _: of(kind(**text))))
    for name, parameter in model.named_parameters():  # no token that repeats itself
        if name.startswith("llm"):
            parameter += (0.05 if "embed" in name else 0.25 / 2) * torch.randn(parameter.shape)
        parameter.copy_(parameter.half().float())
    model.llm.tie_weights()
    folder.mkdir(parents=True)
    tensors = {name: tensor.half().clone() for name, tensor in model.state_dict().items()}
    if text["tie_word_embeddings"]:
        del tensors["llm.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **(processor or {})}))
    return Saved(folder, model, fast)
