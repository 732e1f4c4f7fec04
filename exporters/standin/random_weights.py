"""Random numbers under the names and in the shapes of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from exporters.models.decoders import DecoderConfig, family
from exporters.models.projectors import ProjectorConfig, configure, find, settings
from exporters.models.vision import VisionConfig
from exporters.models.vision import family as encoder_family
from exporters.standin.layouts import MOBILEVLM, Layout

EMBEDDING_STD = 0.02
# Each layer adds these to what it was given: small ones, or deep stacks grow.
ADDED = (
    *("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight"),
    *("output.dense.weight", "output_query.dense.weight", "to_out.weight"),
)


@dataclass(frozen=True)
class Shape:
    tower: VisionConfig
    decoder: DecoderConfig
    layout: Layout = MOBILEVLM
    projector: str = "ldpnetv2"  # an mm_projector_type, where none is asked for


class RandomWeights:
    """Names and shapes of all tensors, and each one's numbers when they are asked for, in the order of `shapes`."""

    def __init__(self, shape: Shape, projector: str, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)
        made, layout = _projector(shape, projector, self.generator), shape.layout
        self.projector = {layout.projector + name: tensor for name, tensor in made.items()}
        self.shapes = dict(_decoder_shapes(shape.decoder, layout.decoder))
        self.shapes |= {name: tuple(tensor.shape) for name, tensor in self.projector.items()}
        self.shapes |= dict(_tower_shapes(shape.tower, layout.encoder))

    def tensor(self, name: str) -> Tensor:
        made = self.projector[name] if name in self.projector else _random(name, self.shapes[name], self.generator)
        return made.to(self.dtype)


def _decoder_shapes(c: DecoderConfig, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """GGUF files keep the same tensors apart as checkpoints, so a family knows the rows of each."""
    of = family(c)
    with torch.device("meta"):
        state = of.Decoder(c).state_dict()
    keys = of.keys(c, prefix)
    tensors = of.gguf_tensors(c)  # no tied head
    for name in filter(tensors.__contains__, keys):
        for key, piece in zip(keys[name].names, tensors[name], strict=True):
            yield key, (piece.rows, *state[name].shape[1:])


def _tower_shapes(c: VisionConfig, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """All layers, and the norm behind the last."""
    of, config = encoder_family(c), cast("Any", c)
    whole = replace(config, select_layer=-1)
    with torch.device("meta"):
        state = of.Tower(whole).state_dict()
    for name, source in of.keys(whole, prefix).items():
        yield source.names[0], tuple(state[name].shape)
    yield prefix + "post_layernorm.weight", (c.hidden,)
    yield prefix + "post_layernorm.bias", (c.hidden,)


def _random(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers that keep activations near unit scale at every width, as in a fresh model."""
    made = torch.randn(size, generator=generator)
    if len(size) > 1 and "embed_tokens" not in name and "position_embedding" not in name:
        calm = 0.2 if name.endswith(ADDED) else 1.0
        return made.mul_(calm * math.prod(size[1:]) ** -0.5)
    made.mul_(EMBEDDING_STD)
    # Gains near one, and neither they nor biases all alike: a misplaced one is to show.
    return made.add_(1) if len(size) == 1 and name.endswith(".weight") else made


@torch.no_grad()
def _projector(shape: Shape, kind: str, generator: torch.Generator) -> Mapping[str, Tensor]:
    """Its last weights that set the scale of its rows are chosen so that they are as large as token rows."""
    module, depth = find(kind)
    tower = shape.tower
    place = ProjectorConfig(tower.hidden, shape.decoder.hidden, tower.grid, depth=depth)
    built: nn.Module = module.Projector(configure(module, place, {**settings(module), **shape.layout.settings}))
    state = {name: _random(name, tuple(t.shape), generator) for name, t in built.state_dict().items()}
    built.load_state_dict(state, assign=True)
    rows = torch.randn(1, tower.grid**2, tower.hidden, generator=generator)
    for layer in reversed(list(dict.fromkeys(name.rpartition(".")[0] for name in state))):
        gain = EMBEDDING_STD / float(built(rows).square().mean().sqrt())
        own = [tensor for name, tensor in state.items() if name.rpartition(".")[0] == layer]
        for tensor in own:
            tensor.mul_(gain)
        if 0.5 < float(built(rows).square().mean().sqrt()) / EMBEDDING_STD < 2:
            return state
        for tensor in own:
            tensor.div_(gain)
    raise AssertionError(f"no layer of {kind} sets the scale of its rows")
