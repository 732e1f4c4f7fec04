"""What torch computes, stage by stage: the truth that every artifact is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge.bundle.golden import TOKENS
from edge.errors import CheckpointError
from edge.inference.prefix import common
from edge.inference.vision import joined
from edge.inputs.views import Views
from edge.types import Embeddings, Segment, Tokens
from edge.verify import Ids, shown
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder

Module = Encoder | LanguageModel


@torch.inference_mode()
def outputs(module: Module, sample: Tensor) -> Tensor:
    """The rows of `pixel_values` `[1, 3, S, S]`, or the logits of every position of rows `[1, S, hidden]`."""
    if isinstance(module, LanguageModel):
        config = module.config
        return cast("Tensor", module(sample, GrowingCache(config.heads, config.kv_heads, config.rope), everywhere=True))
    return cast("Tensor", module(sample))


@torch.inference_mode()
def encode(encoder: Encoder, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[1, 3, S, S]` -> `[1, N, D]`. Raises CheckpointError where that is not finite."""
    rows: NDArray[np.float32] = finite("vision encoder", encoder(torch.from_numpy(pixel_values))).numpy()
    return rows


def encode_all(encoder: Encoder, views: Views) -> Embeddings:
    """All views of an image, as a session joins them. Raises CheckpointError where they are not finite."""
    return joined(views, [Embeddings(encode(encoder, view)[0], "view") for view in views.pixels])


def merged(decoder: LanguageModel, segments: Sequence[Segment]) -> Tensor:
    """The rows that the decoder sees, `[1, S, hidden]`."""
    table = decoder.embed_tokens.weight
    rows = [table[list(s.ids)] if isinstance(s, Tokens) else torch.from_numpy(s.rows) for s in segments]
    return torch.cat(rows)[None]


@torch.inference_mode()
def answer(
    decoder: LanguageModel,
    prompt: Ids,
    image_embeds: NDArray[np.float32],
    count: int = TOKENS,
    guess: Sequence[int] = (),
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Logits `[vocab]` of the prompt's last position and the first `count` greedy tokens, not stopped by an end token;
    None in `prompt` is the picture, whose rows are `image_embeds` `[1, N, hidden]`, or one view of it.

    guess: what the tokens may be. One pass tells how far they are, and each token behind that takes a pass of its own,
        over all weights. Activations must not be rounded together with those of other positions.

    Raises CheckpointError where logits are not finite.
    """
    config = decoder.config
    cache = GrowingCache(config.heads, config.kv_heads, config.rope)

    def picks(ids: Sequence[int], *, everywhere: bool = False) -> list[int]:
        logits = decoder(decoder.embed_tokens(torch.tensor([ids])), cache, everywhere=everywhere)[0]
        return [int(token) for token in finite("decoder", logits).argmax(dim=-1)]

    first = finite("decoder", decoder(merged(decoder, shown(prompt, image_embeds[0])), cache)[0, -1])
    start, tokens = cache.position, [int(first.argmax())]
    if guess and tokens[0] == guess[0]:
        tokens += picks(guess[:count], everywhere=True)
        right = common(tokens, guess[:count])
        tokens = tokens[: right + 1]
        cache.rewind(start + right)
    while len(tokens) < count:
        tokens += picks(tokens[-1:])
    return first.numpy().copy(), np.array(tokens[:count], dtype=np.int32)


def finite(role: str, found: Tensor) -> Tensor:
    """What nothing could be compared with is refused before it is taken for a reference."""
    if wrong := int((~found.isfinite()).sum()):
        raise CheckpointError(
            f"torch computes {wrong} of {found.numel()} outputs of the {role} as NaN or infinity, of finite weights",
            hint="its values outgrow float32: was the training stable, or the checkpoint scaled?",
        )
    return found
