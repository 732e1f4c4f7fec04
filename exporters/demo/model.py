"""The demo's MobileVLM V2: a CLIP tower, LDPv2 and a Llama, built from transformers' classes for training.

The weights are initialised with structure, which two CPU cores cannot afford to discover: the tower's heads look at
their patch's neighbourhood, the decoder's heads look at rows that resemble their own.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from exporters.models.projectors import ProjectorConfig
from exporters.models.projectors.ldpnetv2 import Projector

PATCHES = 24  # per side
WINDOW = PATCHES // 3  # patches per side of one cell of the world


@dataclass(frozen=True)
class Shape:
    """The sizes of the model; the checkpoint's `config.json` is written from it."""

    vocab: int
    tower_width: int = 192
    tower_heads: int = 3
    tower_layers: int = 5  # the last is never run: MobileVLM reads hidden state -2
    hidden: int = 192
    heads: int = 6
    layers: int = 6
    ffn: int = 512
    context: int = 2048

    def tower(self) -> CLIPVisionConfig:
        return CLIPVisionConfig(  # type: ignore[call-arg]  # attn_implementation is taken by the base class
            hidden_size=self.tower_width,
            intermediate_size=4 * self.tower_width,
            num_hidden_layers=self.tower_layers,
            num_attention_heads=self.tower_heads,
            image_size=336,
            patch_size=14,
            hidden_act="quick_gelu",
            attn_implementation="sdpa",
        )

    def decoder(self) -> LlamaConfig:
        return LlamaConfig(  # type: ignore[call-arg]
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            attn_implementation="products",
        )


# What is trained: the demo checkpoint, or one whose decoder never sees 4-bit weights. That one's rows are 256 wide, so
# that llama.cpp's K-quants store it as they store published models, in super-blocks of 256.
VARIANTS: dict[str, dict[str, int]] = {"demo": {}, "no-qat": {"hidden": 256, "heads": 8, "layers": 4}}


class Eye(nn.Module):
    """Tower and projector; pixels `[B, 3, 336, 336]` to image rows `[B, 144, H]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(shape.tower())
        self.projector = Projector(ProjectorConfig(inputs=shape.tower_width, hidden=shape.hidden, grid=PATCHES))
        _look_around(self.tower)
        layers: Any = self.tower.encoder.layers  # torch types a module's parts too widely to work with
        for layer in layers:
            layer.mlp.forward = partial(_fast_mlp, layer.mlp)

    def forward(self, pixels: Tensor, *, windowed: bool = False) -> Tensor:
        """`windowed` lets a patch attend only inside its cell of the world: twice as fast, for early training."""
        states = self.tower.pre_layrnorm(self.tower.embeddings(pixels))  # [B, 577, W], CLS first
        if windowed:
            states = _to_windows(states)
        for layer in self.tower.encoder.layers[:-1]:
            states = layer(states, None)
        rows: Tensor = self.projector(_from_windows(states, len(pixels)) if windowed else states[:, 1:])
        return rows


def _fast_mlp(mlp: Any, states: Tensor) -> Tensor:
    """The same function as CLIP's MLP: x sigmoid(1.702 x) is silu(1.702 x) / 1.702, and silu is one fused kernel.

    Spelled out, the activation and its gradient took half of the tower's time.
    """
    inner = nn.functional.linear(states, mlp.fc1.weight * 1.702, mlp.fc1.bias * 1.702)
    return nn.functional.linear(nn.functional.silu(inner), mlp.fc2.weight / 1.702, mlp.fc2.bias)


def _to_windows(states: Tensor) -> Tensor:
    """`[B, 577, W]` to `[B*9, 65, W]`; each window gets the CLS token."""
    batch, _, width = states.shape
    grid = states[:, 1:].reshape(batch, 3, WINDOW, 3, WINDOW, width).transpose(2, 3).reshape(batch, 9, -1, width)
    cls = states[:, None, :1].expand(-1, 9, -1, -1)
    return torch.cat([cls, grid], 2).flatten(0, 1)


def _from_windows(states: Tensor, batch: int) -> Tensor:
    width = states.shape[-1]
    grid = states[:, 1:].reshape(batch, 3, 3, WINDOW, WINDOW, width).transpose(2, 3)
    return grid.reshape(batch, PATCHES**2, width)


@torch.no_grad()
def _look_around(tower: CLIPVisionModel) -> None:
    """Fourier features as positions, and queries and keys whose scores are bumps around a place near the patch.

    A head of d dimensions holds d/4 frequencies per axis; sum_f g_f cos(w_f * distance) is a bump whose width
    follows from g. Heads of the first layers look a little to three sides, those of the last at the whole cell.
    """
    config = tower.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    count = size // 4
    waves = 2 * math.pi * torch.arange(1, count + 1) / 40  # the period outlasts the 24 patches
    spots = torch.arange(PATCHES).float()
    features = torch.stack([torch.cos(spots[:, None] * waves), torch.sin(spots[:, None] * waves)], 2).flatten(1)
    along_y = features[:, None].expand(-1, PATCHES, -1)
    along_x = features[None].expand(PATCHES, -1, -1)
    positions = torch.cat([along_y, along_x], 2).flatten(0, 1)  # [576, size]
    tower.embeddings.position_embedding.weight.zero_()
    tower.embeddings.position_embedding.weight[1:, :size] = positions
    patch = tower.embeddings.patch_embedding.weight
    nn.init.normal_(patch, std=588**-0.5)
    patch[:size] = 0  # the positions' dimensions stay clean at first
    depth = config.num_hidden_layers
    layers: Any = tower.encoder.layers
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        radius, spread, height = ((1.2, 1.0, 4.0), (2.2, 1.6, 3.5), (2.5, 2.5, 2.5), (0.0, 3.5, 2.0))[min(index, 3)]
        gains = torch.exp(-(waves * spread).square() / 2)
        gains = (gains / gains.sum() * height * math.sqrt(size) / 2).sqrt()  # layer norm doubles the product
        for projection in (attention.q_proj, attention.k_proj):
            nn.init.normal_(projection.weight, std=0.3 * width**-0.5)
            nn.init.zeros_(projection.bias)
        for head in range(heads):
            turn = 2 * math.pi * head / heads
            shifts = (radius * math.sin(turn), radius * math.cos(turn))
            block = slice(head * size, (head + 1) * size)
            attention.k_proj.weight[block, :size] += torch.diag(gains.repeat_interleave(2).repeat(2))
            rotation = torch.block_diag(
                *(
                    _rotation(float(wave) * shift) * gain
                    for shift in shifts
                    for wave, gain in zip(waves, gains, strict=True)
                )
            )
            attention.q_proj.weight[block, :size] += rotation
        nn.init.normal_(attention.v_proj.weight, std=width**-0.5)
        nn.init.normal_(attention.out_proj.weight, std=width**-0.5 / math.sqrt(depth))
        nn.init.normal_(layer.mlp.fc1.weight, std=width**-0.5)
        nn.init.normal_(layer.mlp.fc2.weight, std=(4 * width) ** -0.5 / math.sqrt(depth))


def _rotation(angle: float) -> Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _products(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Causal attention as two batched products; heads `[B, H, T, D]`.

    On a CPU without matrix units the fused kernel's gradient is twice as slow as this.
    """
    weights = torch.softmax((query * scaling) @ key.transpose(2, 3) + mask.to(torch.bfloat16), -1)
    return (weights.to(value.dtype) @ value).transpose(1, 2), None


def build_decoder(shape: Shape) -> LlamaForCausalLM:
    """A Llama whose rows have unit scale and whose heads start by comparing rows (equal queries and keys)."""
    ALL_ATTENTION_FUNCTIONS.register("products", _products)
    decoder = LlamaForCausalLM(shape.decoder())
    size = shape.hidden // shape.heads
    with torch.no_grad():
        nn.init.normal_(decoder.model.embed_tokens.weight, std=0.5)
        nn.init.normal_(decoder.lm_head.weight, std=0.5 * shape.hidden**-0.5)
        layers: Any = decoder.model.layers
        for layer in layers:
            attention = layer.self_attn
            for head in range(shape.heads):
                block = slice(head * size, (head + 1) * size)
                basis, _ = torch.linalg.qr(torch.randn(shape.hidden, size))
                attention.q_proj.weight[block] = basis.T + 0.02 * torch.randn(size, shape.hidden)
                attention.k_proj.weight[block] = basis.T
                basis, _ = torch.linalg.qr(torch.randn(shape.hidden, size))
                attention.v_proj.weight[block] = basis.T * 0.5
                attention.o_proj.weight[:, block] = basis * 0.5
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                nn.init.normal_(linear.weight, std=shape.hidden**-0.5)
            nn.init.normal_(layer.mlp.down_proj.weight, std=shape.ffn**-0.5 / math.sqrt(2 * shape.layers))
    return decoder
