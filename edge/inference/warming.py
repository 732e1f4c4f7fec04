"""Warming: what this machine packs and computes of a bundle is made, and named, to be shipped beside it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from edge.bundle.golden import Golden
from edge.bundle.manifest import Bundle
from edge.engines import engine_named
from edge.formats import xnnpack_cache
from edge.inference.constant_prefix import ConstantPrefix
from edge.inference.session import load


def warmed(bundle: Bundle) -> tuple[list[Path], dict[str, str]]:
    """Files of the user's cache, none where no engine keeps any, and the engines' libraries with their versions; once
    the golden question was answered. Nothing of other system texts than the bundle's own is among them. Raises
    EngineError."""
    golden = Golden.load(bundle.file(bundle.manifest.golden))
    picture = Image.fromarray(golden.picture) if bundle.manifest.sees else None
    with load(bundle.path) as session:
        session.ask(picture, bundle.manifest.golden_prompt["question"], max_tokens=2)
        session.warm()
        prefix = ConstantPrefix(bundle, session.plan, session.tokenizer, None).file()
        engines = [engine_named(name) for name in session.plan.engines]
    libraries = {info.package: info.version for info in engines if info.version}
    return [*xnnpack_cache.used(), *([prefix] if prefix else [])], libraries
