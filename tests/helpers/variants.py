"""Variants of one family's checkpoint, each saved once in a run; and how one that was changed is refused."""

import pytest

from edge.errors import CheckpointError
from exporters.sources.checkpoint import open_checkpoint


class Variants:
    def __init__(self, root, usual, save):
        """`save(folder, variant, **more)` writes one, and gives what a test needs of it."""
        self.root, self.usual, self.save, self.kept = root, usual, save, {}

    def __call__(self, variant=None, **more):
        key = (variant or self.usual, *more)
        if key not in self.kept:
            self.kept[key] = self.save(self.root / f"variant-{len(self.kept)}", key[0], **more)
        return self.kept[key]


def refused(folder, match, kind=CheckpointError, **options):
    """The error, which has a hint."""
    with pytest.raises(kind, match=match) as caught:
        open_checkpoint(str(folder), **options)
    assert caught.value.hint
    return caught.value
