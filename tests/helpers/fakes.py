"""Small stand-ins for engines: a decoder graph in numpy, a decoder that says what it is told, and a bundle to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from conftest import SPEC
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edge.bundle import manifest as bundles
from edge.bundle import staging
from edge.bundle.golden import Golden, Outputs
from edge.bundle.manifest import Bundle, Manifest, Part
from edge.errors import ContextError, EngineError
from edge.spec import DecoderSpec
from edge.types import Array, Embeddings, PartFiles, Segment, Snapshot, TensorSpec, Tokens

BYTES = 3  # the id of byte 0; 1 begins a text, 2 ends an answer
DECODER = DecoderSpec(2, 4, 2, 8, 32, 259, 64, 10000.0, rope_dim=8, family="tiny", ffn=48, gated=True)


def id_of(character: str) -> int:
    (byte,) = character.encode()
    return BYTES + byte


def byte_tokenizer() -> Tokenizer:
    """One id a byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [b for b in range(256) if b not in plain]
    letters = {b: chr(b) for b in plain} | {b: chr(0x100 + n) for n, b in enumerate(shifted)}
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {letters[b]: BYTES + b for b in range(256)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return inner


def decoder_tensors(
    spec: DecoderSpec, length: tuple[int | str, int | str], *, positions: bool = True, every_logit: bool = False
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a lifted decoder whose past and present have these lengths."""
    past, present = ((1, spec.kv_heads, n, spec.head_dim) for n in length)
    caches = [f"{n}.{kind}" for n in range(spec.layers) for kind in ("key", "value")]
    inputs = [
        TensorSpec("inputs_embeds", "float32", (1, "sequence_length", spec.hidden)),
        TensorSpec("attention_mask", "int64", (1, "total_sequence_length")),
        *([TensorSpec("position_ids", "int64", (1, "sequence_length"))] if positions else []),
        *(TensorSpec(f"past_key_values.{name}", "float32", past) for name in caches),
    ]
    rows = "sequence_length" if every_logit else 1
    outputs = [
        TensorSpec("logits", "float32", (1, rows, spec.vocab)),
        *(TensorSpec(f"present.{name}", "float32", present) for name in caches),
    ]
    return tuple(inputs), tuple(outputs)


FIXED = ("cache_length", "cache_length")
GROWING = ("past_sequence_length", "total_sequence_length")


class NumpyGraph:
    """Causal attention with learned positions, in float64 inside: what a lifted graph computes, in the open."""

    def __init__(self, spec: DecoderSpec, length: tuple[int | str, int | str] = FIXED, **kind: bool) -> None:
        self.inputs, self.outputs = decoder_tensors(spec, length, **kind)
        self.spec = spec
        self.fixed = length[0] == length[1]
        self.lengths: list[int] = []  # how many positions each run computed
        self.fail = False
        random = np.random.default_rng(7)
        width = spec.heads * spec.head_dim
        narrow = spec.kv_heads * spec.head_dim
        self.places = random.normal(size=(4096, spec.hidden)) * 0.5
        self.layers = [
            [
                random.normal(size=shape) / np.sqrt(shape[0])
                for shape in [(spec.hidden, width)] + [(spec.hidden, narrow)] * 2
            ]
            + [random.normal(size=(width, spec.hidden)) / np.sqrt(width) * 3]
            for _ in range(spec.layers)
        ]
        self.head = random.normal(size=(spec.hidden, spec.vocab))
        self.head[:, :BYTES] = 0  # it never ends by itself

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        assert into is not None
        assert feeds.keys() == {t.name for t in self.inputs}
        spec, (_, count, _) = self.spec, feeds["inputs_embeds"].shape
        assert feeds["attention_mask"].all()
        total = feeds["attention_mask"].shape[1]
        used = total - count
        if "position_ids" in feeds:
            np.testing.assert_array_equal(feeds["position_ids"], np.arange(used, total)[None])
        x = feeds["inputs_embeds"][0] + self.places[used:total]
        allowed = np.arange(total)[None] <= np.arange(used, total)[:, None]
        for n, (wq, wk, wv, wo) in enumerate(self.layers):
            q = (x @ wq).reshape(count, spec.heads, -1).transpose(1, 0, 2)
            key, value = (
                self._remember(feeds, into, f"{n}.{kind}", (x @ w).reshape(count, spec.kv_heads, -1).transpose(1, 0, 2))
                for kind, w in (("key", wk), ("value", wv))
            )
            if n == 0 and self.fail:
                raise EngineError("the graph failed")
            scores = np.where(allowed, q @ key.transpose(0, 2, 1), -np.inf)  # unscaled: it looks sharply
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (weights / weights.sum(-1, keepdims=True)) @ value
            x = x + mixed.transpose(1, 0, 2).reshape(count, -1) @ wo
        logits = (x @ self.head).astype(np.float32)[None]
        self.lengths.append(count)
        if "logits" in into:
            into["logits"][:] = logits[:, -1:]
            return dict(into)
        return {**into, "logits": logits}

    def _remember(self, feeds: Mapping[str, Array], into: Mapping[str, Array], name: str, new: Array) -> Array:
        past, present = feeds[f"past_key_values.{name}"], into[f"present.{name}"]
        total = feeds["attention_mask"].shape[1]
        used = total - new.shape[1]
        if self.fixed:
            assert present is past, "a fixed cache is updated in place"
            assert past.shape[2] >= total
        else:
            assert past.shape[2] == used
            assert present.shape[2] == total
            assert not np.shares_memory(past, present)
            present[0, :, :used] = past[0]
        present[0, :, used:total] = new
        heads = np.repeat(present[0, :, :total], self.spec.heads // self.spec.kv_heads, axis=0)
        return np.asarray(heads, np.float64)


class Scripted:
    """A Decoder that says one id after another, whatever it hears, and writes down what it was fed."""

    def __init__(self, says: Sequence[int], *, vocab: int = 259, context: int = 10_000) -> None:
        self.says = list(says)
        self.vocab = vocab
        self.context = context
        self.position = 0
        self.fed: list[int] = []  # positions computed by each extend
        self.fail = False
        self.layout: str | None = "scripted"

    def extend(self, segments: Sequence[Segment]) -> Array:
        count = sum(map(len, segments))
        if self.fail:
            raise EngineError("the decoder failed")
        if self.position + count > self.context:
            raise ContextError("full")
        self.position += count
        self.fed.append(count)
        logits = np.zeros(self.vocab, np.float32)
        logits[self.says.pop(0) if self.says else 2] = 1
        return logits

    def rewind(self, position: int) -> None:
        assert 0 <= position <= self.position
        self.position = position

    def snapshot(self) -> Snapshot:
        assert self.layout is not None
        return Snapshot(self.layout, self.position, {"kept": np.zeros(self.position, np.uint8)})

    def restore(self, snapshot: Snapshot) -> None:
        self.position = 0
        if self.fail or snapshot.layout != self.layout:
            raise EngineError("the decoder failed")
        self.position = snapshot.position


def picture(seed: int, hidden: int = 32, rows: int = 4) -> Embeddings:
    values = np.random.default_rng(seed).normal(size=(rows, hidden)).astype(np.float32)
    return Embeddings(values, key=f"picture {seed}")


def words(text: str) -> Tokens:
    return Tokens(tuple(BYTES + b for b in text.encode()))


def embedding_files(folder: Path, spec: DecoderSpec) -> tuple[Path, ...]:
    path = folder / "embed_tokens.npy"
    np.save(path, np.random.default_rng(3).normal(size=(spec.vocab, spec.hidden)).astype(np.float32))
    return (folder / "decoder.onnx", path)


def decoder_part(folder: Path, spec: DecoderSpec, **changes: object) -> PartFiles:
    part = PartFiles("onnx", "fp32", ("decoder",), embedding_files(folder, spec), (), ())
    return replace(part, **changes)  # type: ignore[arg-type]


def write_model_bundle(
    destination: Path, length: tuple[int | str, int | str] = FIXED, *, split: bool = False, context: int = 400
) -> Bundle:
    """A bundle that loads with the null engine. `split`: the projector is a part of its own."""
    spec = replace(SPEC, decoder=replace(DECODER, context=context))
    with staging.create(destination) as root:
        for name in ("vision.onnx", "projector.onnx", "decoder.onnx", "golden.safetensors"):
            (root / name).write_bytes(name.encode())
        embedding_files(root, spec.decoder)
        byte_tokenizer().save(str(root / "tokenizer.json"))
        inputs, outputs = decoder_tensors(spec.decoder, length)

        def part(covers: tuple[str, ...], files: Sequence[str], takes: object, gives: object) -> Part:
            entries = tuple(bundles.describe(root, root / f) for f in files)
            return Part(covers, "onnx", "fp32", entries, takes, gives, weights=50_000)  # type: ignore[arg-type]

        pixels = (TensorSpec("pixel_values", "float32", (1, 3, 28, 28)),)
        features = (TensorSpec("features", "float32", (1, 16, 48)),)
        embeds = (TensorSpec("image_embeds", "float32", (1, 4, 32)),)
        seeing = [part(("vision", "projector"), ["vision.onnx"], pixels, embeds)]
        if split:
            seeing = [
                part(("vision",), ["vision.onnx"], pixels, features),
                part(("projector",), ["projector.onnx"], features, embeds),
            ]
        manifest = Manifest(
            name="null",
            source={"name": "nothing", "sha256": "0" * 64},
            license="apache-2.0",
            recipe="none",
            spec=spec,
            golden_prompt={"question": "?", "segments": [[1], None, [7]]},
            parts=(*seeing, part(("decoder",), ["decoder.onnx", "embed_tokens.npy"], inputs, outputs)),
            tokenizer=bundles.describe(root, root / "tokenizer.json"),
            golden=bundles.describe(root, root / "golden.safetensors"),
            versions={},
        )
        bundles.write_manifest(root, manifest)
    return Bundle.open(destination)


def write_golden(bundle: Bundle) -> None:
    """A golden sample of the right shapes, in place of the bytes that `write_model_bundle` leaves."""
    rows, logits = np.zeros((1, 4, 32), np.float32), np.zeros(259, np.float32)
    outputs = Outputs(rows, logits, np.zeros(16, np.int32))
    golden = Golden(np.zeros((20, 30, 3), np.uint8), np.zeros((1, 3, 28, 28), np.float32), outputs, outputs)
    golden.save(bundle.path / "golden.safetensors")
    entry = bundles.describe(bundle.path, bundle.path / "golden.safetensors")
    bundles.write_manifest(bundle.path, replace(bundle.manifest, golden=entry))
