"""Small modules of random numbers, what torch computes with them, and writing them in a format."""

from __future__ import annotations

import dataclasses

import torch

from edge.spec import DecoderSpec
from exporters.formats import Job, silent
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel, llama
from exporters.models.projectors import ProjectorConfig


def randomized(module):
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        scale = 0.08 if parameter.ndim > 1 else 0.3
        parameter.data = parameter.data + scale * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def random_decoder(config, seed=0):
    torch.manual_seed(seed)
    return randomized(llama.Decoder(config))


def small_projector(module, tower, hidden):
    """How a projector is built behind this tower, with its own settings as its tiny twin has them."""
    shape = ProjectorConfig(tower.hidden, hidden, tower.grid, depth=2)
    own = getattr(module.tiny(), "config", shape)
    return dataclasses.replace(own, inputs=shape.inputs, hidden=hidden, grid=shape.grid)


def spec_of(config):
    c = config
    return DecoderSpec(c.layers, c.heads, c.kv_heads, c.head_dim, c.hidden, c.vocab, c.context, c.rope_theta)


@torch.inference_mode()
def logits_after(module, pieces):
    """Of the last position, after each piece of rows `[1, S, hidden]`."""
    config = module.config
    cache = GrowingCache(config.heads, config.kv_heads, config.rope)
    return [module(rows, cache)[0, -1].numpy() for rows in pieces]


def write(format, component, module, scheme, folder, progress=silent, importance=None, *, checkpoint=None, **more):
    """As an export does: checked, then written. `more`: `samples`, `measured` and `options` of a Job."""
    job = Job(component, scheme, folder, checkpoint, progress, importance or {}, **more)
    if hasattr(format, "check"):
        format.check(job)
    return (format.decoder if isinstance(module, LanguageModel) else format.encoder)(job, module)
