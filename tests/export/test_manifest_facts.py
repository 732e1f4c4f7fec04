"""What a manifest says of a model's size is what the checkpoint holds, whatever the shape of its vision encoder."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import REPOSITORY
from exported import Exports, manifest_of

from edge.planning.sizes import sizes
from exporters import preview, standin
from exporters.models.decoders import llama
from exporters.models.vision.clip import TowerConfig
from exporters.standin.random_weights import Shape

DECODER = llama.Config(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=512, context=1024)
TOWERS = {  # and its positions, patches, and the layers that are run
    "224/32": (TowerConfig(image_size=224, patch_size=32, hidden=64, layers=4, heads=1, ffn=96), 50, 49, 3),
    "224/14": (TowerConfig(image_size=224, patch_size=14, hidden=64, layers=2, heads=1, ffn=96), 257, 256, 1),
}


def stored(checkpoint: Path) -> dict[str, int]:
    """How many numbers each tensor of a safetensors file has, by its header."""
    content = (checkpoint / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {name: prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def counted(checkpoint: Path, layers: int) -> tuple[int, int]:
    """Of the vision encoder, of which so many layers are run, with the projector; and of the decoder."""
    unused = re.compile(r"post_layernorm|position_ids|inv_freq|vision_tower.*encoder\.layers\.(\d+)\.")

    def runs(name: str) -> bool:
        found = unused.search(name)
        return found is None or (found[1] is not None and int(found[1]) < layers)

    numbers = {name: count for name, count in stored(checkpoint).items() if runs(name)}
    vision = sum(count for name, count in numbers.items() if "vision_tower" in name or "mm_projector" in name)
    return vision, sum(numbers.values()) - vision


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    text = (REPOSITORY / "edge" / "bundle" / "manifest.schema.json").read_text()
    return jsonschema.Draft202012Validator(json.loads(text))


def test_an_exported_bundle(exports: Exports, schema: Any) -> None:
    manifest = manifest_of(exports.bundle(schemes=("fp32",)))
    schema.validate(manifest)
    assert manifest["schema"] == 2
    assert tuple(part["weights"] for part in manifest["parts"]) == counted(exports.checkpoint(), 2)
    assert manifest["vision"] == {"width": 64, "layers": 2, "heads": 1, "positions": 577, "patches": 576}
    told = {name: manifest["decoder"][name] for name in ("family", "ffn", "gated", "rope")}
    rope = {"theta": 10000.0, "scaling": None, "dim": 16}
    assert told == {"family": "llama", "ffn": 96, "gated": True, "rope": rope}
    assert all("options" not in part for part in manifest["parts"])


@pytest.mark.parametrize(("tower", "positions", "patches", "layers"), TOWERS.values(), ids=TOWERS)
def test_towers_of_another_shape(tower: TowerConfig, positions: int, patches: int, layers: int, tmp_path: Path) -> None:
    """Before anything is exported, as `edge fit CHECKPOINT` asks."""
    standin.write(tmp_path / "checkpoint", Shape(tower, DECODER), projector="mlp2x_gelu")
    found = preview.foresee(str(tmp_path / "checkpoint"), "onnx-w8a8-w4", None, ())
    read = sizes(found, found.parts)
    assert (read.width, read.layers, read.heads, read.positions) == (64, layers, 1, positions)
    assert found.spec.vision and found.spec.vision.patches == found.spec.prompt.image_tokens == patches
    vision, decoder = counted(tmp_path / "checkpoint", layers)
    assert (read.vision, read.decoder + 2 * read.head, read.ffn) == (vision, decoder, 96)
