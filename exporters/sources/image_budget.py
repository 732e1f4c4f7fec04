"""How many embeddings an image of a checkpoint may take."""

from __future__ import annotations

from dataclasses import replace

from edge.errors import UsageError
from edge.spec.division import AnyresSpec, RatioSpec
from exporters.sources.checkpoint import Checkpoint

_FEWEST = 3  # views of a division: two tiles, and the whole


def budgeted(checkpoint: Checkpoint, image_tokens: int | None) -> Checkpoint:
    """The checkpoint, whose images take so many at most: fewer tiles, or one view. None: as it was trained. Raises
    UsageError where one view takes more."""
    spec, views = checkpoint.spec, checkpoint.spec.image.views
    one = spec.prompt.image_tokens
    if image_tokens is not None and image_tokens < one:
        raise UsageError(
            f"an image cannot be {image_tokens} embeddings: one view of it gives {one}", hint=f"--image-tokens {one}"
        )
    if views is None or image_tokens is None:
        return checkpoint
    fewest = _FEWEST * one
    if isinstance(views, AnyresSpec):
        fewest = one + views.side  # the whole, and one line
    elif isinstance(views, RatioSpec):
        fewest = max(fewest, (views.tiles[0] + 1) * one)
    if image_tokens < fewest:
        image, prompt = replace(spec.image, views=None), replace(spec.prompt, views=None)
        return replace(checkpoint, spec=replace(spec, image=image, prompt=prompt))
    image = replace(spec.image, views=replace(views, image_tokens=image_tokens))
    return replace(checkpoint, spec=replace(spec, image=image))
