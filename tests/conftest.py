"""What several groups of tests share: a bundle of invented bytes that the contract accepts."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from edge import privacy
from edge.bundle import manifest as bundles
from edge.bundle import staging
from edge.bundle.manifest import Bundle, Manifest, Part
from edge.spec import DecoderSpec, ImageSpec, PromptSpec, VisionSpec, VLMSpec
from edge.spec.pieces import Questions, Slot, Text
from edge.types import TensorSpec

if TYPE_CHECKING:
    from exported import Exports
    from serving import Served

privacy.keep()  # tests import engines by themselves
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")
REPOSITORY = Path(__file__).resolve().parents[1]

_USER = (Text("USER: "), Slot("content"), Text(" "))
SPEC = VLMSpec(
    image=ImageSpec(28, "pad", (122, 116, 104), "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)),
    prompt=PromptSpec(
        question=Questions(_USER, (Slot("system"), Text(" "), *_USER), _USER),
        image_question=None,
        image=(Slot("image"), Text("\n")),
        answer=(Text("ASSISTANT: "), Slot("answer")),
        generation=(Text("ASSISTANT:"),),
        default_system="A chat.",
        image_tokens=4,
        bos_id=1,
        restarts=("bos", "image"),
        end_ids=(2,),
        stop_ids=(2,),
        stop_strings=("</s>",),
    ),
    decoder=DecoderSpec(2, 4, 2, 8, 32, 100, 64, 10000.0, rope_dim=8, family="tiny", ffn=48, gated=True),
    vision=VisionSpec(width=24, layers=3, heads=2, positions=5, patches=4),
)

FILES = {
    "vision.onnx": b"vision graph",
    "decoder.onnx": b"decoder graph",
    "decoder.onnx.data": bytes(range(256)),
    "tokenizer.json": b"{}",
    "golden.safetensors": b"golden",
}


def write_bundle(destination: Path, *, name: str = "tiny") -> Bundle:
    """A complete bundle, whose parts hold no model."""
    with staging.create(destination) as root:
        for path, content in FILES.items():
            (root / path).write_bytes(content)
        vision = Part(
            covers=("vision", "projector"),
            format="onnx",
            scheme="w8a8",
            files=(bundles.describe(root, root / "vision.onnx"),),
            inputs=(TensorSpec("pixel_values", "float32", (1, 3, 28, 28)),),
            outputs=(TensorSpec("image_embeds", "float32", (1, 4, 32)),),
            tolerance={"max_abs": 0.02, "cosine": 0.999},
            weights=1000,
            error={"vision.stored.max_abs": 0.01, "vision.stored.cosine": 0.9999, "vision.fp32.max_abs": 0.25},
        )
        decoder = Part(
            covers=("decoder",),
            format="onnx",
            scheme="w4",
            files=tuple(bundles.describe(root, root / f) for f in ("decoder.onnx", "decoder.onnx.data")),
            inputs=(TensorSpec("inputs_embeds", "float32", (1, "sequence_length", 32)),),
            outputs=(TensorSpec("logits", "float32", (1, 1, 100)),),
            weights=20_000,
        )
        manifest = Manifest(
            name=name,
            source={"name": "a checkpoint", "sha256": "0" * 64},
            license="apache-2.0",
            recipe="balanced",
            spec=SPEC,
            golden_prompt={"question": "What is this?", "segments": [[1, 5, 6], None, [7, 8]]},
            parts=(vision, decoder),
            tokenizer=bundles.describe(root, root / "tokenizer.json"),
            golden=bundles.describe(root, root / "golden.safetensors"),
            versions={"edge-vlm": "0.1.0"},
        )
        bundles.write_manifest(root, manifest)
    return Bundle.open(destination)


def pytest_collection_finish() -> None:
    """What was imported stays: to walk over torch at each collection takes an eighth of an export's time."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered between runs, and what engines keep, stays out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """`make_bundle(name=…)` writes the bundle of invented bytes at `tmp_path / "bundle"`."""

    def make(where: str = "bundle", **facts: str) -> Bundle:
        return write_bundle(tmp_path / where, **facts)

    return make


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Checkpoints of random numbers, and bundles made from them; for tests that may need torch."""
    from exported import Exports

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exports"  # of all workers
    folder.mkdir(exist_ok=True)
    return Exports(folder)


@pytest.fixture(scope="session")
def served_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that the null engine opens, for tests of the server."""
    from fakes import write_model_bundle

    return write_model_bundle(tmp_path_factory.mktemp("served") / "tiny", context=400).path


@pytest.fixture(scope="module")
def server(served_bundle: Path) -> Iterator[Served]:
    """A server of that bundle, which a module's tests share: they leave it as it was."""
    from serving import served

    with served(served_bundle) as found:
        yield found
