"""`edge verify BUNDLE --against CHECKPOINT`: make golden anew from the checkpoint, and hold the bundle to it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from edge.bundle import Bundle
from edge.errors import ParityError, UsageError
from edge.golden import Golden
from edge.recipes import Target
from edge.session import load
from edge.verify import Report, compare
from exporters.build import build
from exporters.checkpoint import open_checkpoint


def verify_against(
    bundle: Bundle, checkpoint: str, threads: int, progress: Callable[[str, float], None] = lambda stage, done: None
) -> Report:
    """The parts are written again into a temporary folder, which needs room for one more bundle.

    Raises ParityError when the bundle was made from another checkpoint.
    """
    manifest = bundle.manifest
    source = open_checkpoint(checkpoint, context=manifest.spec.decoder.context)
    if source.sha256 != manifest.source["sha256"]:
        raise ParityError(
            f"{checkpoint!r} is not the checkpoint that this bundle was made from ({manifest.source['name']}): "
            f"sha256 {source.sha256[:12]}…, expected {manifest.source['sha256'][:12]}…",
            hint="give the checkpoint that was exported, or export this one",
        )
    if source.spec != manifest.spec:
        raise UsageError(
            "this edge-vlm reads the checkpoint in another way than the one that exported it did",
            hint="export the bundle again",
        )
    old = Golden.load(bundle.file(bundle.manifest.golden))
    targets = {role: Target(part.format, part.scheme) for part in manifest.parts for role in part.covers}
    with tempfile.TemporaryDirectory() as folder:
        question = manifest.golden_prompt["question"]
        golden = build(source, targets, old.picture, question, Path(folder), progress).golden
    with load(bundle.path, threads=threads) as session:
        return compare(session, golden)
