"""A checkpoint of random numbers in exactly the upstream layout."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

from edge.errors import UsageError
from exporters.models import decoders, projectors
from exporters.models.decoders import DecoderConfig
from exporters.models.vision.clip import TowerConfig
from exporters.standin.random_weights import RandomWeights, Shape

log = logging.getLogger(__name__)
MODEL_TYPE = "mobilevlm"
SHARD_BYTES = 1_000_000_000
TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: \n"
    "What is in this picture? ASSISTANT: There is a cat on the table. USER: How many dogs are there, and where? "
    "ASSISTANT: 0123456789 dogs; they sit left of the red house!"
)


def _decoder(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, context: int) -> DecoderConfig:
    return decoders.find(MODEL_TYPE).from_config(
        {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab,
            "max_position_embeddings": context,
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
}


def write(
    folder: Path,
    shape: Shape,
    *,
    projector: str = "ldpnetv2",
    format: str = "safetensors",
    shards: int = 0,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> None:
    """Write the checkpoint into an empty or new folder. `shards` 0: as many as keep each under 1 GB."""
    require_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config(shape, projector, dtype))
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\nRandom numbers in the layout of MobileVLM.\n")
    (folder / "tokenizer.model").write_bytes(tokenizer(shape.decoder.vocab))
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
        _write_json(index_file, {"metadata": {"total_size": total}, "weight_map": where})


def require_new(folder: Path) -> None:
    """Raises UsageError where something is there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{str(folder)!r} exists and is not empty", hint="name another place with -o")


def config(shape: Shape, projector: str, dtype: torch.dtype) -> dict[str, Any]:
    """config.json as upstream writes it."""
    decoder = shape.decoder
    return {
        "architectures": ["MobileLlamaForCausalLM"],
        "model_type": MODEL_TYPE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.ffn,
        "max_position_embeddings": decoder.context,
        "num_attention_heads": decoder.heads,
        "num_hidden_layers": decoder.layers,
        "num_key_value_heads": decoder.kv_heads,
        "rms_norm_eps": decoder.eps,
        "rope_theta": decoder.rope.theta,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": decoder.vocab,
        "vision_tower_type": "clip",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": projector,
        "mm_hidden_size": shape.tower.hidden,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        **projectors.settings(projectors.find(projector)[0]),
    }


def in_groups(shapes: Mapping[str, tuple[int, ...]], count: int) -> list[list[str]]:
    """The names in `count` runs of about equal size."""
    total = sum(math.prod(size) for size in shapes.values())
    groups: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for name, size in shapes.items():
        groups[min(count - 1, before * count // total)].append(name)
        before += math.prod(size)
    return [group for group in groups if group]


def tokenizer(vocab: int) -> bytes:
    """A Llama tokenizer.model of `vocab` pieces: bytes, what TEXT is made of, and pieces that no text is cut into."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=trained,
        model_type="bpe",
        vocab_size=min(vocab, 512),
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    pb2: Any = sentencepiece_model_pb2
    model = pb2.ModelProto.FromString(trained.getvalue())
    lowest = min(piece.score for piece in model.pieces)
    for index in range(len(model.pieces), vocab):
        model.pieces.add(piece=f"⁂{index}⁂", score=lowest - index)
    model.trainer_spec.vocab_size = len(model.pieces)
    made: bytes = model.SerializeToString()
    return made


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
