"""The stand-in: upstream's names, shapes and scale, the same numbers every time."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor

from edge import plugins
from edge.bundle.manifest import Bundle
from edge.errors import UsageError
from exporters import standin
from exporters.export import ExportRequest, export
from exporters.models.encoder import fused
from exporters.sources.checkpoint import open_checkpoint
from exporters.standin.random_weights import RandomWeights

KINDS = ["ldpnet", "ldpnetv2", "linear", "mlp2x_gelu", "pixel_shuffle", "qformer", "resampler"]
KINDS += ["c-abs", "minigpt", "internvl"]
NOT_MADE = {"d-abs", "minicpmv"}  # a checkpoint keeps one of its tensors in another shape than the module, or none
PUBLISHED = [
    r"model\.embed_tokens\.weight",
    r"model\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight",
    r"model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight",
    r"model\.layers\.\d+\.(input|post_attention)_layernorm\.weight",
    r"model\.norm\.weight",
    r"lm_head\.weight",
    r"model\.mm_projector\.mlp\.mlp\.[02]\.(weight|bias)",
    r"model\.mm_projector\.peg\.peg\.0\.(weight|bias)",
    r"model\.vision_tower\.vision_tower\.vision_model\.embeddings\.class_embedding",
    r"model\.vision_tower\.vision_tower\.vision_model\.embeddings\.(patch|position)_embedding\.weight",
    r"model\.vision_tower\.vision_tower\.vision_model\.(pre_layrnorm|post_layernorm)\.(weight|bias)",
    r"model\.vision_tower\.vision_tower\.vision_model\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj\.(weight|bias)",
    r"model\.vision_tower\.vision_tower\.vision_model\.encoder\.layers\.\d+\.(layer_norm|mlp\.fc)[12]\.(weight|bias)",
]


def test_published_names(tmp_path):
    standin.write(tmp_path, standin.SHAPES["tiny"])
    names = set(load_file(tmp_path / "model.safetensors"))
    for pattern in PUBLISHED:
        assert any(re.fullmatch(pattern, name) for name in names), pattern
    assert [name for name in names if not any(re.fullmatch(pattern, name) for pattern in PUBLISHED)] == []


@pytest.mark.parametrize(
    ("shape", "kind", "decoder", "projector"),
    [("1.7b", "ldpnetv2", 1.36, 6.3), ("1.7b", "ldpnet", 1.36, 18.9), ("3b", "ldpnetv2", 2.7, 9.2)],
)
def test_real_sizes(shape, kind, decoder, projector):
    shapes = RandomWeights(standin.SHAPES[shape], kind, torch.float16, seed=0).shapes
    counts = {"decoder": 0, "projector": 0, "tower": 0}
    for name, size in shapes.items():
        part = "tower" if "vision_tower" in name else "projector" if "mm_projector" in name else "decoder"
        counts[part] += torch.Size(size).numel()
    assert counts["decoder"] / 1e9 == pytest.approx(decoder, rel=0.01)
    assert counts["projector"] / 1e6 == pytest.approx(projector, rel=0.02)
    assert counts["tower"] / 1e6 == pytest.approx(303.5, rel=0.001)  # CLIP ViT-L/14-336


PUBLISHED_SIZES = {  # millions of weights: of the decoder, the projector, the vision encoder
    "smolvlm-500m": (409, 11.8, 86.4),
    "nanollava": (464, 2.2, 412),
    "llava-1.5-7b": (6738, 21, 303.5),
}


def counted(shape):
    found = {"decoder": 0, "projector": 0, "encoder": 0}
    for name, size in RandomWeights(shape, shape.projector, torch.float16, seed=0).shapes.items():
        own = [part for part in ("encoder", "projector") if name.startswith(getattr(shape.layout, part))]
        found[own[0] if own else "decoder"] += torch.Size(size).numel()
    return tuple(found.values())


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_sizes_of_other_families(name):
    found = counted(standin.SHAPES[name])
    assert [count / 1e6 for count in found] == pytest.approx(PUBLISHED_SIZES[name], rel=0.02)


def cut(shape):
    """The same layout, tiny."""
    tower = replace(shape.tower, layers=2, hidden=32, heads=2, ffn=48)
    sizes = {"layers": 1, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16, "context": 2048}
    return replace(shape, tower=tower, decoder=replace(shape.decoder, vocab=700, **sizes))


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_a_checkpoint_of_another_family_is_exported(name, tmp_path):
    """Every name, size and file is as its dialect expects, and the prompt is settled."""
    standin.write(tmp_path / name, cut(standin.SHAPES[name]))
    request = ExportRequest(str(tmp_path / name), tmp_path / "out", schemes=("fp32",), threads=1, image_tokens=800)
    done = export(request, lambda *_: None)
    assert done.report.ok
    spec = Bundle.open(done.path).manifest.spec
    full = standin.SHAPES[name].tower
    assert (spec.image.size, spec.vision.patches) == (full.image_size, full.grid**2)
    assert spec.prompt.image_tokens == {"smolvlm-500m": 64, "nanollava": 729, "llava-1.5-7b": 576}[name]


@pytest.mark.parametrize("name", plugins.names("exporters.models.projectors"))
def test_every_projector_is_covered(name):
    kind = plugins.facts("exporters.models.projectors", name)["KIND"]
    assert kind.replace("{depth}", "2") in {*KINDS, *NOT_MADE}


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_image_rows_are_as_large_as_token_rows(tmp_path, kind):
    standin.write(tmp_path, standin.SHAPES["tiny"], projector=kind)
    found = open_checkpoint(str(tmp_path))
    encoder = fused(found.components["vision"], found.components["projector"]).load(found.weights)
    rows = encoder(torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(1)))
    assert rows.shape == (1, found.spec.prompt.image_tokens, 64)
    table = found.weights["model.embed_tokens.weight"].float()
    assert 0.3 < float(rows.square().mean().sqrt() / table.square().mean().sqrt()) < 3
    assert rows.std(dim=1).mean() > 1e-3  # a picture's rows differ


def test_the_same_numbers_every_time_and_in_every_layout(tmp_path):
    shape = standin.SHAPES["tiny"]
    standin.write(tmp_path / "a", shape, seed=3)
    standin.write(tmp_path / "b", shape, seed=3)
    standin.write(tmp_path / "c", shape, seed=3, format="bin", shards=2)
    standin.write(tmp_path / "d", shape, seed=4)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()
    }
    a, c, d = (open_checkpoint(str(tmp_path / name)).weights for name in "acd")
    assert all(torch.equal(a[name], c[name]) for name in a)
    assert not torch.equal(a["lm_head.weight"], d["lm_head.weight"])


def test_shards(tmp_path):
    standin.write(tmp_path, standin.SHAPES["tiny"], shards=3)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert set(index["weight_map"].values()) == files
    for file in files:
        held = {name for name, shard in index["weight_map"].items() if shard == file}
        assert set(load_file(tmp_path / file)) == held
    sizes = [(tmp_path / file).stat().st_size for file in files]
    assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize("vocab", [512, 32000])
def test_tokenizer(tmp_path, vocab):
    (tmp_path / "tokenizer.model").write_bytes(standin.sentence_pieces(vocab))
    pieces = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert pieces.vocab_size() == vocab
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) == (0, 1, 2)
    for text in (standin.TEXT, "Ünïcode ⁂600⁂ 猫 🐈", "  two  spaces"):
        ids = pieces.encode(text)
        assert pieces.decode(ids) == text
        assert max(ids) < 512  # what fills the vocabulary is never used


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        standin.write(tmp_path, standin.SHAPES["tiny"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_command(tmp_path, monkeypatch, caplog):
    options = ["--shape", "tiny", "--projector", "ldpnet", "--format", "bin", "--dtype", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["standin", *options, "-o", str(tmp_path / "made")])
    assert standin.main() == 0
    found = open_checkpoint(str(tmp_path / "made"))
    assert found.weights.dtype("model.norm.weight") == torch.bfloat16
    assert "model.mm_projector.model.mb_block.2.block.2.1.weight" in found.weights
    assert standin.main() == 2
    assert "not empty" in caplog.text
    monkeypatch.setattr(sys, "argv", ["standin", "--shape", "tiny", "--projector", "x", "-o", str(tmp_path / "new")])
    assert standin.main() == 1
    assert "mm_projector_type 'x'" in caplog.text
