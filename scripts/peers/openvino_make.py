"""Makes the model for OpenVINO, in the peer's own environment: openvino_make.py CHECKPOINT DIR.

DIR/vision.xml has int8 weights and activations (NNCF, calibrated with the project's pictures); DIR/decoder.xml has
4-bit weights, symmetric, one scale for 128, and keeps keys and values itself, as exports of Optimum do.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
import torch
from openvino import opset13
from openvino._offline_transformations import apply_make_stateful_transformation
from torch import Tensor, nn
from torch.nn import functional as F

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from edge.inputs.image import pixels  # noqa: E402
from exporters.models.decoders import LanguageModel  # noqa: E402
from exporters.sources.checkpoint import Checkpoint, open_checkpoint  # noqa: E402

PICTURES = sorted((REPOSITORY / "exporters" / "demo" / "pictures").glob("*.png"))
GROUPS = (128, 64, 32)  # weights that share a scale: the first that divides every row


class Remembering(nn.Module):
    """A decoder whose keys and values come and go as tensors; rotation and mask are computed beside it, in numpy."""

    def __init__(self, decoder: LanguageModel) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, inputs_embeds: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, beam_idx: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        config, batch = self.decoder.config, inputs_embeds.shape[0]
        present: list[Tensor] = []

        def attend(layer: int, qkv: Tensor, cap: float = 0.0) -> Tensor:
            parts = qkv.view(batch, -1, config.heads + 2 * config.kv_heads, config.head_dim).transpose(1, 2)
            q, k, v = parts.split([config.heads, config.kv_heads, config.kv_heads], dim=1)
            # The engine fuses a cache with attention where its entries are gathered by beam.
            k, v = (
                torch.cat([old.index_select(0, beam_idx), new], dim=2)
                for old, new in zip(past[2 * layer : 2 * layer + 2], (_rotated(k, cos, sin), v), strict=True)
            )
            present.extend((k, v))
            shared = config.heads // config.kv_heads
            k, v = (t if shared == 1 else t.repeat_interleave(shared, dim=1) for t in (k, v))
            y = F.scaled_dot_product_attention(_rotated(q, cos, sin), k, v, attn_mask=mask)
            return y.transpose(1, 2).reshape(batch, -1, config.heads * config.head_dim)

        return (self.decoder(inputs_embeds, attend), *present)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x `[B, H, S, D]`, cos and sin `[1, 1, S, D]`: as transformers spells it, which the engine knows."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def vision(checkpoint: Checkpoint, folder: Path) -> None:
    encoder = checkpoint.encoder.load(checkpoint.weights)
    shape = encoder.view_shape
    model = ov.convert_model(encoder, example_input=torch.zeros(shape), input=list(shape))
    shown = [pixels(path.read_bytes(), checkpoint.spec.image) for path in PICTURES]
    small = nncf.quantize(model, nncf.Dataset(shown), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(shown))
    ov.save_model(small, folder / "vision.xml", compress_to_fp16=False)


def decoder(checkpoint: Checkpoint, folder: Path) -> None:
    module = checkpoint.components["decoder"].load(checkpoint.weights)
    assert isinstance(module, LanguageModel)
    config = module.config
    np.save(folder / "embeddings.npy", module.embed_tokens.weight.half().numpy())
    assert config.rope.width == config.head_dim, "heads that rotate in part"
    cos, sin = (np.tile(table.numpy(), 2) for table in config.rope.tables(config.context))
    np.savez(folder / "rotations.npz", cos=cos, sin=sin)
    some, before = 3, 2
    example = {
        "inputs_embeds": torch.zeros(1, some, config.hidden),
        "mask": torch.zeros(1, 1, some, before + some),
        "cos": torch.ones(1, 1, some, config.head_dim),
        "sin": torch.zeros(1, 1, some, config.head_dim),
        "beam_idx": torch.zeros(1, dtype=torch.int32),
        "past": [torch.zeros(1, config.kv_heads, before, config.head_dim) for _ in range(2 * config.layers)],
    }
    model = ov.convert_model(Remembering(module), example_input=example)
    del module
    names = {}
    shapes = {
        "inputs_embeds": [-1, -1, config.hidden],
        "mask": [-1, 1, -1, -1],
        "cos": [1, 1, -1, config.head_dim],
        "sin": [1, 1, -1, config.head_dim],
        "beam_idx": [-1],
    }
    for port in model.inputs[len(shapes) :]:
        port.get_node().set_partial_shape(ov.PartialShape([-1, config.kv_heads, -1, config.head_dim]))
        port.get_node().set_element_type(ov.Type.f32)
    for port, (name, shape) in zip(model.inputs, shapes.items(), strict=False):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(ov.PartialShape(shape))
    for number, (old, new) in enumerate(zip(model.inputs[len(shapes) :], model.outputs[1:], strict=True)):
        old.get_tensor().set_names({f"past.{number}"})
        new.get_tensor().set_names({f"present.{number}"})
        names[f"past.{number}"] = f"present.{number}"
    model.outputs[0].get_tensor().set_names({"logits"})
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, names)
    _begin_empty(model)
    group = next(size for size in GROUPS if config.hidden % size == 0 and config.ffn % size == 0)
    small = nncf.compress_weights(
        model, mode=nncf.CompressWeightsMode.INT4_SYM, ratio=1.0, group_size=group, all_layers=True
    )
    ov.save_model(small, folder / "decoder.xml")


def _begin_empty(model: ov.Model) -> None:
    """Say what a cache holds before the first call, without which the engine's fused attention has no input."""
    batch = opset13.gather(opset13.shape_of(model.input("inputs_embeds"), "i64"), np.array([0]), np.array(0))
    for state in [node for node in model.get_ops() if node.get_type_name() == "ReadValue"]:
        sizes = [opset13.constant(np.array([size.min_length])) for size in state.get_output_partial_shape(0)]
        shape = opset13.concat([batch, *sizes[1:]], axis=0)
        state.set_arguments([opset13.broadcast(opset13.constant(np.float32(0)), shape).output(0)])
    model.validate_nodes_and_infer_types()


if __name__ == "__main__":
    source, target = sys.argv[1], Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    opened = open_checkpoint(source)
    (target / "image.json").write_text(json.dumps(asdict(opened.spec.image)))
    with torch.inference_mode():
        if not (target / "vision.xml").exists():
            vision(opened, target)
        decoder(opened, target)
