"""Checkpoint dialects: one file each, and what they have in common.

A dialect of folders has `MODEL_TYPES`, the `model_type`s of a config.json that it reads, and `recognise(config)`; a
dialect of files has `SUFFIXES`. `read(source, *, vision_tower, mmproj, context)` gives the Checkpoint.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Literal

from edge.errors import CheckpointError, UsageError
from edge.spec import DecoderSpec, ImageSpec, VisionSpec
from exporters.models.decoders import DecoderConfig
from exporters.models.vision.clip import TowerConfig


def buildable(config: DecoderConfig) -> bool:
    """Whether the sizes fit each other. Raises CheckpointError on positions that are scaled in an unknown way."""
    waves = config.rope.inv_freq()
    return config.heads % config.kv_heads == 0 and config.head_dim % 2 == 0 and bool(waves.isfinite().all())


def shortened(asked: int | None, trained: int, image_tokens: int) -> int:
    """The context to export for. Raises UsageError on one that cannot be had."""
    context = trained if asked is None else asked
    if not image_tokens < context <= trained:
        raise UsageError(
            f"a context of {context} positions cannot be had",
            hint=f"--context above {image_tokens} (one picture takes as many), at most {trained} (as trained)",
        )
    return context


def decoder_spec(family: ModuleType, config: DecoderConfig) -> DecoderSpec:
    return DecoderSpec(
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden=config.hidden,
        vocab=config.vocab,
        context=config.context,
        rope_theta=config.rope_theta,
        rope_scaling=dict(config.rope_scaling) if config.rope_scaling else None,
        rope_dim=config.head_dim,
        family=family.KIND,
        ffn=config.ffn,
        gated=family.GATED,
    )


def vision_spec(config: TowerConfig) -> VisionSpec:
    return VisionSpec(
        width=config.hidden,
        layers=config.run_layers,
        heads=config.heads,
        positions=config.positions,
        patches=config.grid**2,
    )


def image_spec(
    size: int,
    fit: Literal["pad", "crop"],
    resample: Literal["bicubic", "bilinear"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> ImageSpec:
    """The background of a padded picture is the mean colour. Raises CheckpointError on numbers that no picture has."""
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value < math.inf for value in std):
        raise CheckpointError(
            f"the pictures' mean is {list(mean)}, their image_std {list(std)}", hint="download the checkpoint again"
        )
    return ImageSpec(size=size, fit=fit, background=background(mean), resample=resample, mean=mean, std=std)


def background(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """What LLaVA's code pads an image with: the mean as a colour, white where it is beyond."""
    red, green, blue = (min(255, int(part * 255)) for part in mean)
    return red, green, blue
