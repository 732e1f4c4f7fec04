"""A massive begin-of-text token (arXiv 2402.17762) in a decoder, as the attention sinks of trained ones are, planted so
that the function nearly stays.

The channels that matter least are taken from the residual stream. In them the embedding of the begin-of-text token is
massive. That token is the first, and so what it is in every layer hangs on nothing that follows: what its norms lose is
a constant, which the columns of these channels give back. The function is exactly that of the model without these
channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from edge.errors import UsageError
from exporters.models import ops, prenorm
from exporters.models.component import Component
from exporters.models.folding import folding
from exporters.sources.checkpoint import Checkpoint
from exporters.standin.planting import Edits, Plan, require

log = logging.getLogger(__name__)


@torch.no_grad()
def edits(checkpoint: Checkpoint, component: Component, factor: float, channels: int) -> Edits:
    """A massive begin-of-text token: `factor` times the usual magnitude, in every layer.

    One parameter is in memory at a time. Nothing is planted where the prompt begins with no such token. Raises
    UsageError on a decoder of another kind than pre-norm layers with RMS norms and gated feed-forward, or of too few
    channels.
    """
    skeleton = component.skeleton()
    if not isinstance(skeleton, prenorm.Decoder) or skeleton.traits.layer_norm or skeleton.traits.scaled:
        raise UsageError(f"no massive activations are known for a {type(skeleton).__module__}", hint="--outliers alone")
    require(channels, skeleton.config.hidden)
    if (begin := checkpoint.spec.prompt.bos_id) is None:
        log.info("the prompt has no begin-of-text token: the decoder gets no massive activation")
        return {}

    def get(name: str) -> Tensor:
        return component.keys[name].load(checkpoint.weights.__getitem__, torch.float32)

    config, plan = cast("prenorm.Config", skeleton.config), Plan()
    quiet = _quietest(skeleton, get)[:channels]
    given = list(_lone_token(skeleton, get, begin, quiet))
    size = factor * max(rms for _, _, rms in given)
    plan.fill("embed_tokens.weight", (slice(None), quiet), 0.0)
    plan.fill("embed_tokens.weight", (begin, quiet), size)
    for norm in _named(skeleton, "norm"):
        plan.fill(f"{norm}.weight", quiet, 1.0)
    for path in _named(skeleton, "o_proj", "down_proj"):
        plan.fill(f"{path}.weight", quiet, 0.0)
        if f"{path}.bias" in component.keys:
            plan.fill(f"{path}.bias", quiet, 0.0)
    for path, made, rms in given:
        before = (rms**2 + config.eps) ** 0.5
        after = (rms**2 + channels * size**2 / config.hidden + config.eps) ** 0.5
        # What the norm takes from all others of this row, and only of this one, the massive channels give.
        column = made * (1 - before / after) / (channels * size / after)
        plan.fill(f"{path}.weight", (slice(None), quiet), column[:, None])
    log.info("the decoder's begin-of-text token is %.4g in %d channels of %d", size, channels, config.hidden)
    return plan.edits


def _named(skeleton: nn.Module, *ends: str) -> list[str]:
    """The paths of the layers that a name ends so; of norms, those of the residual stream."""
    return [name for name, _ in skeleton.named_modules() if name.endswith(ends) and "head_norms" not in name]


def _readers(decoder: prenorm.Decoder) -> list[tuple[str, str]]:
    """Each norm of the residual stream, and the linear layer that reads it; a tied head is the table."""
    return [(fold.source, fold.readers[0]) for fold in folding(decoder).folds if fold.source.endswith("norm")]


def _quietest(decoder: prenorm.Decoder, get: Callable[[str], Tensor]) -> Tensor:
    """Channels of the residual stream, by what is written to them and read of them, against the usual channel."""

    def share(sizes: Tensor) -> Tensor:
        return sizes.square() / sizes.square().mean()

    written = share(get("embed_tokens.weight").norm(dim=0))
    for path in _named(decoder, "o_proj", "down_proj"):
        written += share(get(f"{path}.weight").norm(dim=1))
    read = torch.zeros(decoder.config.hidden)
    for norm, path in _readers(decoder):
        read += share(get(f"{norm}.weight") * get(f"{path}.weight").norm(dim=0))
    return (written * read).argsort()


def _lone_token(
    decoder: prenorm.Decoder, get: Callable[[str], Tensor], token: int, quiet: Tensor
) -> Iterator[tuple[str, Tensor, float]]:
    """What the linear layers behind norms give for a token at the first position, without their biases, and the root
    mean square of what the norm is given."""
    c = decoder.config
    names = dict(decoder.named_parameters())
    stream = get("embed_tokens.weight")[token].clone()
    stream[quiet] = 0.0

    def product(path: str, x: Tensor) -> tuple[Tensor, Tensor]:
        made = get(f"{path}.weight") @ x
        return made, made + get(f"{path}.bias") if f"{path}.bias" in names else made

    def added(path: str, x: Tensor) -> Tensor:
        given = product(path, x)[1]
        given[quiet] = 0.0
        return stream + given

    def normed(norm: str) -> tuple[Tensor, float]:
        made = torch.nn.functional.rms_norm(stream, stream.shape, get(f"{norm}.weight"), c.eps)
        return made, float(stream.square().mean().sqrt())

    for at in (f"layers.{index}" for index in range(c.layers)):
        x, rms = normed(f"{at}.input_layernorm")
        bare, qkv = product(f"{at}.qkv_proj", x)
        yield f"{at}.qkv_proj", bare, rms
        values = qkv[-c.kv_heads * c.head_dim :].view(c.kv_heads, 1, c.head_dim)
        # A token that sees itself only takes its own value.
        stream = added(f"{at}.o_proj", values.expand(-1, c.heads // c.kv_heads, -1).flatten())
        x, rms = normed(f"{at}.post_attention_layernorm")
        bare, gate_up = product(f"{at}.gate_up_proj", x)
        yield f"{at}.gate_up_proj", bare, rms
        stream = added(f"{at}.down_proj", ops.current().gated(gate_up, decoder.traits.activation))
    if not c.tied:
        x, rms = normed("norm")
        yield "lm_head", product("lm_head", x)[0], rms
