"""A checkpoint of random numbers in exactly the upstream layout."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edge.errors import UsageError
from exporters.models import decoders
from exporters.models.decoders import DecoderConfig
from exporters.models.vision import siglip
from exporters.models.vision.clip import TowerConfig
from exporters.standin.layouts import LLAVA, NANOLLAVA, SMOLVLM, write_json
from exporters.standin.random_weights import RandomWeights, Shape

log = logging.getLogger(__name__)
SHARD_BYTES = 1_000_000_000


def _decoder(
    layers: int,
    hidden: int,
    ffn: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    context: int,
    kind: str = "llama",
    **more: Any,
) -> DecoderConfig:
    return decoders.find(kind).from_config(
        {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab,
            "max_position_embeddings": context,
            **more,
        }
    )


VIT_L = TowerConfig(image_size=336, patch_size=14, hidden=1024, layers=24, heads=16, ffn=4096)
SHAPES = {
    "tiny": Shape(
        TowerConfig(image_size=336, patch_size=14, hidden=64, layers=3, heads=1, ffn=96),
        _decoder(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, vocab=512, context=1024),
    ),
    "1.7b": Shape(
        VIT_L,
        _decoder(layers=24, hidden=2048, ffn=5632, heads=16, kv_heads=16, vocab=32000, context=2048),
    ),
    "3b": Shape(
        VIT_L,
        _decoder(layers=32, hidden=2560, ffn=6912, heads=32, kv_heads=32, vocab=32000, context=2048),
    ),
    "smolvlm-500m": Shape(
        siglip.TowerConfig(image_size=512, patch_size=16, hidden=768, layers=12, heads=12, ffn=3072, select_layer=None),
        _decoder(
            layers=32, hidden=960, ffn=2560, heads=15, kv_heads=5, vocab=49280, context=8192, rope_theta=100_000.0
        ),
        SMOLVLM,
        "pixel_shuffle",
    ),
    "nanollava": Shape(
        siglip.TowerConfig(image_size=384, patch_size=14, hidden=1152, layers=27, heads=16, ffn=4304),
        _decoder(
            layers=24,
            hidden=1024,
            ffn=2816,
            heads=16,
            kv_heads=16,
            vocab=151936,
            context=32768,
            kind="qwen2",
            rope_theta=1_000_000.0,
            tie_word_embeddings=True,
        ),
        NANOLLAVA,
        "mlp2x_gelu",
    ),
    "llava-1.5-7b": Shape(
        VIT_L,
        _decoder(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32, vocab=32000, context=4096),
        LLAVA,
        "mlp2x_gelu",
    ),
}


def write(
    folder: Path,
    shape: Shape,
    *,
    projector: str | None = None,
    format: str = "safetensors",
    shards: int = 0,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> None:
    """Write the checkpoint into an empty or new folder. `projector` None: the shape's; `shards` 0: as many as keep each
    under 1 GB."""
    require_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layout, projector = shape.layout, projector or shape.projector
    layout.files(folder, shape, projector, dtype)
    (folder / "README.md").write_text(f"---\nlicense: cc0-1.0\n---\nRandom numbers in the layout of {layout.family}.\n")
    made = RandomWeights(shape, projector, dtype, seed)
    total = sum(math.prod(size) for size in made.shapes.values()) * dtype.itemsize
    groups = in_groups(made.shapes, shards or -(-total // SHARD_BYTES))
    stem, suffix = ("model", ".safetensors") if format == "safetensors" else ("pytorch_model", ".bin")
    where: dict[str, str] = {}
    for index, names in enumerate(groups, 1):
        name = f"{stem}-{index:05}-of-{len(groups):05}{suffix}" if len(groups) > 1 else stem + suffix
        tensors = {key: made.tensor(key) for key in names}
        if format == "safetensors":
            save_file(tensors, folder / name, metadata={"format": "pt"})
        else:
            torch.save(tensors, folder / name)
        where |= dict.fromkeys(names, name)
        log.info("%s: %d tensors", name, len(tensors))
    if len(groups) > 1:
        index_file = folder / f"{stem}{suffix}.index.json"
        write_json(index_file, {"metadata": {"total_size": total}, "weight_map": where})


def require_new(folder: Path) -> None:
    """Raises UsageError where something is there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{str(folder)!r} exists and is not empty", hint="name another place with -o")


def in_groups(shapes: Mapping[str, tuple[int, ...]], count: int) -> list[list[str]]:
    """The names in `count` runs of about equal size."""
    total = sum(math.prod(size) for size in shapes.values())
    groups: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for name, size in shapes.items():
        groups[min(count - 1, before * count // total)].append(name)
        before += math.prod(size)
    return [group for group in groups if group]
