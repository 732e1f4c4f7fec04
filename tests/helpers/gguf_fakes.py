"""A small decoder as a GGUF file, written by the definition of the format, and what it computes, in numpy; and the
files of a pair as converters write them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.spec import DecoderSpec
from edge.types import Array, Embeddings, PartFiles, Segment, Tokens

SPEC = DecoderSpec(layers=2, heads=4, kv_heads=2, head_dim=16, hidden=64, vocab=96, context=1200, rope_theta=10000.0)
FFN = 96
EPS = 1e-6
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def setting(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value[0], int):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)


def settings_of(spec: DecoderSpec) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "llama.block_count": spec.layers,
        "llama.context_length": spec.context,
        "llama.embedding_length": spec.hidden,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": spec.heads,
        "llama.attention.head_count_kv": spec.kv_heads,
        "llama.attention.key_length": spec.head_dim,
        "llama.attention.value_length": spec.head_dim,
        "llama.attention.layer_norm_rms_epsilon": EPS,
        "llama.rope.freq_base": spec.rope_theta,
        "llama.rope.dimension_count": spec.head_dim,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"word{n}" for n in range(spec.vocab)],
        "tokenizer.ggml.scores": [0.0] * spec.vocab,
    }


def weights_of(spec: DecoderSpec = SPEC, seed: int = 0) -> dict[str, Array]:
    """f32, `[out, in]`."""
    random = np.random.default_rng(seed)
    wide, narrow = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (spec.vocab, spec.hidden), "output": (spec.vocab, spec.hidden)}
    for n in range(spec.layers):
        shapes |= {f"blk.{n}.attn_q": (wide, spec.hidden), f"blk.{n}.attn_output": (spec.hidden, wide)}
        shapes |= {f"blk.{n}.attn_{x}": (narrow, spec.hidden) for x in "kv"}
        shapes |= {f"blk.{n}.ffn_{x}": (FFN, spec.hidden) for x in ("gate", "up")}
        shapes |= {f"blk.{n}.ffn_down": (spec.hidden, FFN)}
    norms = ["output_norm", *(f"blk.{n}.{x}_norm" for n in range(spec.layers) for x in ("attn", "ffn"))]
    found = {f"{name}.weight": random.normal(size=shape) / np.sqrt(shape[1]) * 2 for name, shape in shapes.items()}
    found |= {f"{name}.weight": random.uniform(0.5, 1.5, spec.hidden) for name in norms}
    return {name: value.astype(np.float32) for name, value in found.items()}


def gguf_bytes(
    settings: Mapping[str, Any], tensors: Mapping[str, tuple[Sequence[int], int, bytes]], *, version: int = 3
) -> bytes:
    """`tensors`: name -> (shape as numpy has it, number of the kind, content)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(settings))
    head += b"".join(text(key) + setting(value) for key, value in settings.items())
    body, offset = [], 0
    for name, (shape, kind, content) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)
        body.append(content + bytes(-len(content) % 32))
        offset += len(body[-1])
    return head + bytes(-len(head) % 32) + b"".join(body)


def decoder_bytes(spec: DecoderSpec = SPEC, settings: Mapping[str, Any] | None = None) -> bytes:
    tensors = {name: (value.shape, F32, value.tobytes()) for name, value in weights_of(spec).items()}
    return gguf_bytes(settings_of(spec) | dict(settings or {}), tensors)


def part_of(path: Path, spec: DecoderSpec = SPEC, content: bytes | None = None) -> PartFiles:
    path.write_bytes(decoder_bytes(spec) if content is None else content)
    return PartFiles("gguf", "f32", ("decoder",), (path,), (), (), spec)


def reference(segments: Sequence[Segment], spec: DecoderSpec = SPEC) -> Array:
    """Logits [vocab] of the last position, in float64."""
    weights = {name.removesuffix(".weight"): value.astype(np.float64) for name, value in weights_of(spec).items()}
    table = weights["token_embd"]
    x = np.concatenate([table[list(s.ids)] if isinstance(s, Tokens) else s.rows for s in segments])
    for n in range(spec.layers):
        w = {name.removeprefix(f"blk.{n}."): value for name, value in weights.items() if name.startswith(f"blk.{n}.")}
        h = norm(x) * w["attn_norm"]
        q, k, v = (heads(h @ w[f"attn_{name}"].T, spec) for name in "qkv")
        k, v = (np.repeat(a, spec.heads // spec.kv_heads, axis=0) for a in (rotated(k, spec), v))
        scores = rotated(q, spec) @ k.transpose(0, 2, 1) / np.sqrt(spec.head_dim)
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ v
        x = x + mixed.transpose(1, 0, 2).reshape(len(x), -1) @ w["attn_output"].T
        h = norm(x) * w["ffn_norm"]
        gate = h @ w["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
    logits: Array = norm(x[-1]) * weights["output_norm"] @ weights["output"].T
    return logits


def norm(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)  # type: ignore[no-any-return]


def heads(x: Array, spec: DecoderSpec) -> Array:
    return x.reshape(len(x), -1, spec.head_dim).transpose(1, 0, 2)


def rotated(x: Array, spec: DecoderSpec) -> Array:
    """Neighbouring numbers are turned together."""
    angles = np.arange(x.shape[1])[:, None] * spec.rope_theta ** (-np.arange(0, spec.head_dim, 2) / spec.head_dim)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.stack([even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)], -1)
    return turned.reshape(x.shape)


def gathered(tokens: Tokens, spec: DecoderSpec = SPEC) -> Embeddings:
    """The rows that stand for these tokens."""
    return Embeddings(weights_of(spec)["token_embd.weight"][list(tokens.ids)], key="gathered")


Tensors = dict[str, tuple[Sequence[int], int, bytes]]


def pair_decoder() -> tuple[dict[str, Any], Tensors]:
    """Settings and tensors of a decoder that is as it should be, but for its template."""
    words = ["<unk>", "<s>", "</s>", *(f"word{n}" for n in range(3, SPEC.vocab))]
    settings = settings_of(SPEC) | {
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [-float(n) for n in range(SPEC.vocab)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (SPEC.vocab - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }
    return settings, {name: (value.shape, F32, value.tobytes()) for name, value in weights_of().items()}


def pair_mmproj(layers: int = 2, ffn: int = 96) -> tuple[dict[str, Any], Tensors]:
    """Settings and tensors of an mmproj of random numbers that is as it should be, its matrices in Q8_0."""
    hidden, random = SPEC.hidden, np.random.default_rng(1)
    settings = {
        "general.architecture": "clip",
        "clip.projector_type": "ldpv2",
        "clip.has_vision_encoder": True,
        "clip.use_gelu": False,
        "clip.vision.image_size": 336,
        "clip.vision.patch_size": 14,
        "clip.vision.embedding_length": hidden,
        "clip.vision.feed_forward_length": ffn,
        "clip.vision.projection_dim": 768,
        "clip.vision.attention.head_count": 2,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.block_count": layers,
        "clip.vision.feature_layer": [layers],
        "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073],
        "clip.vision.image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    shapes: dict[str, tuple[int, ...]] = {
        "v.class_embd": (hidden,),
        "v.patch_embd.weight": (hidden, 3, 14, 14),
        "v.position_embd.weight": (577, hidden),
        "mm.model.peg.0.weight": (hidden, 3, 3),
        "mm.model.peg.0.bias": (hidden,),
    }
    linear = {f"v.blk.{n}.attn_{x}": (hidden, hidden) for n in range(layers) for x in ("q", "k", "v", "out")}
    linear |= {f"v.blk.{n}.ffn_up": (ffn, hidden) for n in range(layers)}
    linear |= {f"v.blk.{n}.ffn_down": (hidden, ffn) for n in range(layers)}
    linear |= {f"mm.model.mlp.{n}": (hidden, hidden) for n in (0, 2)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("v.pre_ln", *(f"v.blk.{n}.ln{x}" for n in range(layers) for x in (1, 2))):
        shapes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    tensors: Tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and "position" not in name:
            tensors[name] = (shape, Q8_0, random.bytes(shape[0] * shape[1] // 32 * 34))
        else:
            kind, dtype = (F16, np.float16) if name == "v.position_embd.weight" else (F32, np.float32)
            tensors[name] = (shape, kind, random.normal(size=shape).astype(dtype).tobytes())
    return settings, tensors
