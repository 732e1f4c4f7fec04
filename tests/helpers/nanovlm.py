"""Tiny checkpoints in nanoVLM's layout, and what its definition makes of their tensors, in plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from chat_templates import CHATML
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

EXTRA = {"image_token": "<|image|>", "global_image_token": "<|global_image|>", "r1c1": "<row_1_col_1>"}
CONFIG: dict[str, Any] = {
    "vit_hidden_dim": 32,
    "vit_inter_dim": 64,
    "vit_patch_size": 6,
    "vit_img_size": 36,
    "vit_n_heads": 2,
    "vit_dropout": 0.0,
    "vit_n_blocks": 2,
    "vit_ln_eps": 1e-6,
    "vit_cls_flag": False,
    "vit_model_type": "google/siglip2-base-patch16-512",
    "lm_hidden_dim": 64,
    "lm_inter_dim": 96,
    "lm_rms_eps": 1e-5,
    "lm_re_base": 100000,
    "lm_max_position_embeddings": 512,
    "lm_base_vocab_size": 311,
    "extra_token_amount": 9,
    "lm_vocab_size": 320,
    "lm_n_heads": 4,
    "lm_n_kv_heads": 2,
    "lm_dropout": 0.0,
    "lm_n_blocks": 2,
    "lm_attn_scaling": 1.0,
    "lm_max_length": 512,
    "lm_use_tokens": False,
    "lm_tie_weights": True,
    "lm_model_type": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "lm_chat_template": CHATML,
    "mp_pixel_shuffle_factor": 2,
    "mp_image_token_length": 9,
    "max_img_size": 72,
    "resize_to_max_side_len": False,
    "vlm_extra_tokens": EXTRA,
    "vlm_load_backbone_weights": True,
    "vlm_checkpoint_path": "checkpoints",
    "hf_repo_name": "nanoVLM",
}


class Nano(NamedTuple):
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def embeddings(self, pixels: Tensor) -> Tensor:
        """`[1, 3, H, W]` -> `[N, hidden]`."""
        c, t = self.config, self.tensors
        x = F.conv2d(
            pixels, *self._two("vision_encoder.patch_embedding.conv"), stride=c["vit_patch_size"]
        )  # [1, D, G, G]
        x = x.flatten(2).transpose(1, 2)[0] + t["vision_encoder.patch_embedding.position_embedding"][0]  # [G*G, D]
        for i in range(c["vit_n_blocks"]):
            block = f"vision_encoder.blocks.{i}"
            x = x + self._attention(block, self._norm(f"{block}.ln1", x))
            inner = F.linear(self._norm(f"{block}.ln2", x), *self._two(f"{block}.mlp.fc1"))
            x = x + F.linear(F.gelu(inner, approximate="tanh"), *self._two(f"{block}.mlp.fc2"))
        x = self._norm("vision_encoder.layer_norm", x)
        side, f = c["vit_img_size"] // c["vit_patch_size"], c["mp_pixel_shuffle_factor"]
        squares = [
            torch.cat([x[(f * row + r) * side + f * column + k] for r in range(f) for k in range(f)])
            for row in range(side // f)
            for column in range(side // f)
        ]
        return torch.stack(squares) @ t["MP.proj.weight"].T

    def logits(self, rows: Tensor) -> Tensor:
        """Of the last position. rows `[S, hidden]`."""
        c, t = self.config, self.tensors
        heads, kv, d = c["lm_n_heads"], c["lm_n_kv_heads"], c["lm_hidden_dim"] // c["lm_n_heads"]
        angles = torch.outer(torch.arange(len(rows)).double(), c["lm_re_base"] ** -(torch.arange(0, d, 2) / d).double())
        turn = torch.polar(torch.ones_like(angles), angles)[None]  # [1, S, d/2]
        future = torch.full((len(rows), len(rows)), -torch.inf).triu(1)
        x = rows
        for i in range(c["lm_n_blocks"]):
            block = f"decoder.blocks.{i}"
            h = self._rms(f"{block}.norm1", x)
            q, k, v = (
                (h @ t[f"{block}.attn.{name}_proj.weight"].T).view(len(rows), -1, d).transpose(0, 1) for name in "qkv"
            )
            q, k = _turned(q, turn), _turned(k, turn).repeat_interleave(heads // kv, 0)
            shares = (q @ k.transpose(1, 2) / d**0.5 + future).softmax(-1)
            mixed = (shares @ v.repeat_interleave(heads // kv, 0)).transpose(0, 1).flatten(1)
            x = x + mixed @ t[f"{block}.attn.out_proj.weight"].T
            h = self._rms(f"{block}.norm2", x)
            gate, up, down = (t[f"{block}.mlp.{name}_proj.weight"].T for name in ("gate", "up", "down"))
            x = x + (F.silu(h @ gate) * (h @ up)) @ down
        return self._rms("decoder.norm", x[-1]) @ t["decoder.head.weight"].T

    @torch.inference_mode()
    def answer(self, before: list[int], pixels: Tensor, after: list[int], count: int) -> list[int]:
        """Greedy tokens after ids, an image and ids."""
        table = self.tensors.get("decoder.token_embedding.weight", self.tensors["decoder.head.weight"])
        rows, told = torch.cat([table[before], self.embeddings(pixels), table[after]]), []
        for _ in range(count):
            told.append(int(self.logits(rows).argmax()))
            rows = torch.cat([rows, table[told[-1:]]])
        return told

    def pixels(self, image: Any) -> Tensor:
        side = self.config["vit_img_size"]
        resized = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255

    def _two(self, name: str) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self._two(name), self.config["vit_ln_eps"])

    def _rms(self, name: str, x: Tensor) -> Tensor:
        size = x.square().mean(-1, keepdim=True) + self.config["lm_rms_eps"]
        return x * size.rsqrt() * self.tensors[f"{name}.weight"]

    def _attention(self, block: str, x: Tensor) -> Tensor:
        heads = self.config["vit_n_heads"]
        d = x.shape[1] // heads
        q, k, v = (
            part.view(len(x), heads, d).transpose(0, 1)
            for part in F.linear(x, *self._two(f"{block}.attn.qkv_proj")).chunk(3, dim=-1)
        )
        mixed = (q @ k.transpose(1, 2) / d**0.5).softmax(-1) @ v
        return F.linear(mixed.transpose(0, 1).flatten(1), *self._two(f"{block}.attn.out_proj"))


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions: the halves of a head are the parts of complex numbers."""
    real, imaginary = x.double().chunk(2, dim=-1)
    turned = torch.complex(real, imaginary) * turn
    return torch.cat([turned.real, turned.imag], dim=-1).float()


def save(folder: Path, tokenizer: Any, **said: Any) -> Nano:
    """`tokenizer`: of the tokenizers library, of `lm_base_vocab_size` tokens, beside the checkpoint as its user puts
    it."""
    c = CONFIG | said
    shapes: dict[str, tuple[int, ...]] = {}

    def both(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    wide, inner, patch = c["vit_hidden_dim"], c["vit_inter_dim"], c["vit_patch_size"]
    both("vision_encoder.patch_embedding.conv", wide, 3, patch, patch)
    shapes["vision_encoder.patch_embedding.position_embedding"] = (1, (c["vit_img_size"] // patch) ** 2, wide)
    for i in range(c["vit_n_blocks"]):
        block = f"vision_encoder.blocks.{i}"
        both(f"{block}.attn.qkv_proj", 3 * wide, wide)
        both(f"{block}.attn.out_proj", wide, wide)
        both(f"{block}.mlp.fc1", inner, wide)
        both(f"{block}.mlp.fc2", wide, inner)
        both(f"{block}.ln1", wide)
        both(f"{block}.ln2", wide)
    both("vision_encoder.layer_norm", wide)
    hidden, ffn = c["lm_hidden_dim"], c["lm_inter_dim"]
    keys = hidden // c["lm_n_heads"] * c["lm_n_kv_heads"]
    shapes["MP.proj.weight"] = (hidden, wide * c["mp_pixel_shuffle_factor"] ** 2)
    for i in range(c["lm_n_blocks"]):
        block = f"decoder.blocks.{i}"
        rows = {"attn.q": hidden, "attn.k": keys, "attn.v": keys, "mlp.gate": ffn, "mlp.up": ffn}
        shapes |= {f"{block}.{name}_proj.weight": (count, hidden) for name, count in rows.items()}
        shapes[f"{block}.attn.out_proj.weight"], shapes[f"{block}.mlp.down_proj.weight"] = (hidden,) * 2, (hidden, ffn)
        shapes[f"{block}.norm1.weight"] = shapes[f"{block}.norm2.weight"] = (hidden,)
    shapes["decoder.norm.weight"] = (hidden,)
    shapes["decoder.head.weight"] = (c["lm_vocab_size"], hidden)  # the one name that a file keeps of a tied table
    if not c["lm_tie_weights"]:
        shapes["decoder.token_embedding.weight"] = (c["lm_vocab_size"], hidden)
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, shape in shapes.items():
        numbers = torch.randn(shape, generator=generator)
        norm = len(shape) == 1 and name.endswith("weight")
        tensors[name] = (1 + 0.2 * numbers if norm else 0.15 * numbers).half().float()
    folder.mkdir(parents=True)
    save_file(tensors | {"decoder.rotary_embd.inv_freq": torch.ones(8)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(c))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return Nano(folder, c, tensors)
