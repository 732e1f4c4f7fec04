"""Checkpoint dialects: one file each, and what they have in common.

A dialect of folders has `MODEL_TYPES`, the `model_type`s that it may read, `MARKS`, the keys of a config.json by which
it knows its layout of them, and `recognise(config)`. All that list a `model_type` are asked, and exactly one must
recognise the config. A dialect of files has `SUFFIXES`. `read(source, *, vision_tower, mmproj, context)` gives the
Checkpoint; of a folder also with `adapter`, what a fine-tune changes of it.
"""

from __future__ import annotations

import math

from edge.errors import CheckpointError, UsageError
from edge.spec import DecoderSpec, Fit, ImageSpec, Resample, VisionSpec
from exporters.models.decoders import DecoderConfig, family
from exporters.models.vision import VisionConfig


def buildable(config: DecoderConfig) -> bool:
    """Whether the sizes fit each other. Raises CheckpointError on positions that are scaled in an unknown way."""
    width, waves = config.rope.width, config.rope.inv_freq()
    rotated = type(width) is int and 0 < width <= config.head_dim and width % 2 == 0
    return config.heads % config.kv_heads == 0 and config.head_dim % 2 == 0 and rotated and bool(waves.isfinite().all())


def shortened(asked: int | None, trained: int, image_tokens: int) -> int:
    """The context to export for. Raises UsageError on one that cannot be had."""
    context = trained if asked is None else asked
    if not image_tokens < context <= trained:
        raise UsageError(
            f"a context of {context} positions cannot be had",
            hint=f"--context above {image_tokens} (one picture takes as many), at most {trained} (as trained, or as "
            "far as its layers see)",
        )
    return context


def decoder_spec(config: DecoderConfig) -> DecoderSpec:
    return DecoderSpec(
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden=config.hidden,
        vocab=config.vocab,
        context=config.context,
        rope_theta=config.rope.theta,
        rope_scaling=dict(config.rope.scaling) if config.rope.scaling else None,
        rope_dim=config.rope.width,
        family=family(config).KIND,
        ffn=config.ffn,
        gated=config.gated,
    )


def vision_spec(config: VisionConfig) -> VisionSpec:
    return VisionSpec(
        width=config.hidden,
        layers=config.run_layers,
        heads=config.heads,
        positions=config.positions,
        patches=config.grid**2,
    )


def image_spec(
    size: int,
    fit: Fit,
    resample: Resample,
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
