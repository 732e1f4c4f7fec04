"""What llama.cpp computes from a written GGUF, against torch on the same stored weights."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from commands import call
from conftest import REPOSITORY
from small_models import write

from edge.bench.measurements import measuring
from edge.bench.request import Request
from edge.bundle.golden import Golden
from edge.bundle.manifest import Bundle
from edge.engines import open_part
from edge.errors import EngineError
from edge.inference.session import load
from edge.types import Embeddings, OpenOptions, PartFiles, Tokens
from edge.verify import distance
from exporters import pipeline, reference, standin
from exporters.export import ExportRequest, export
from exporters.formats import gguf as format
from exporters.models.decoders import llama
from exporters.models.vision.clip import TowerConfig
from exporters.sources.checkpoint import open_checkpoint
from exporters.standin.random_weights import Shape
from exporters.verify_checkpoint import verify_against

TOWER = TowerConfig(image_size=336, patch_size=14, hidden=64, layers=3, heads=1, ffn=96)
DECODER = llama.Config(layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, head_dim=64, vocab=512, context=1024)
SPLIT = ((1, 5, 30, 17, 400), None, (9, 77, 210))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    standin.write(folder, Shape(TOWER, DECODER))
    return open_checkpoint(str(folder))


def written(checkpoint, folder, scheme):
    """The module as stored, and the decoder that llama.cpp makes of the file."""
    _, component = pipeline.components(checkpoint)
    module = component.load(checkpoint.weights)
    files, *_ = write(format, component, module, scheme, folder, lambda _: None, checkpoint=checkpoint)
    part = PartFiles("gguf", scheme, ("decoder",), tuple(files), (), (), checkpoint.spec.decoder)
    return module, open_part(part, "llamacpp", OpenOptions(threads=1, context=part.decoder.context))


def prompt(rows):
    return [Embeddings(rows[0], key="picture") if ids is None else Tokens(ids) for ids in SPLIT]


@pytest.mark.parametrize("scheme", format.SCHEMES["decoder"])
def test_every_scheme_computes_what_torch_does(checkpoint, scheme, tmp_path):
    module, decoder = written(checkpoint, tmp_path, scheme)
    rows = np.random.default_rng(0).normal(size=(1, 6, DECODER.hidden)).astype(np.float32) / 50
    expected, tokens = reference.answer(module, SPLIT, rows)
    logits = decoder.extend(prompt(rows))
    assert distance(logits, expected)["cosine"] >= format.SCHEMES["decoder"][scheme]["cosine"]
    if scheme == "f16":
        for token in tokens:
            assert int(logits.argmax()) == token
            logits = decoder.extend([Tokens((int(token),))])


def test_tokens_are_the_rows_of_the_table(checkpoint, tmp_path):
    module, decoder = written(checkpoint, tmp_path, "f16")
    ids = (1, 5, 30, 17, 400)
    by_token = decoder.extend([Tokens(ids)])
    decoder.rewind(0)
    with torch.inference_mode():
        rows = module.embed_tokens(torch.tensor(ids)).numpy()
    np.testing.assert_allclose(decoder.extend([Embeddings(rows, key="table")]), by_token, atol=1e-5)


def test_a_mixed_bundle(checkpoint, tmp_path):
    request = ExportRequest(str(checkpoint.folder), tmp_path / "out", recipe="onnx-w8a8-gguf-q4_0", threads=1)
    done = export(request, lambda *_: None)
    assert done.report.ok
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    with load(done.path, threads=1) as session:
        assert [choice.engine for choice in session.plan.choices] == ["onnxruntime", "llamacpp"]
        session.ask(picture, "What is this?", max_tokens=6)
        first = session.last
        session.ask(picture, "What is this?", max_tokens=6)
        assert session.last.token_ids == first.token_ids
        assert session.last.cached_tokens == first.prompt_tokens - 1
    with load(done.path, threads=1, cache="q8_0", context=600) as session:
        session.ask(picture, "What is this?", max_tokens=6)
        assert session.last.prompt_tokens == first.prompt_tokens


def test_the_pair_alone(checkpoint, tmp_path):
    """No vision part: the decoder is proven, text is answered, and of a picture it is told what to do."""
    request = ExportRequest(
        str(checkpoint.folder),
        tmp_path / "out",
        format="gguf",
        schemes=("q4_k_m",),
        options={"gguf": {"gguf_only": True}},
        threads=1,
    )
    done = export(request, lambda *_: None)
    assert done.next_command == f"edge run {tmp_path / 'out'} 'What is in this picture?'"
    assert sorted(path.name for path in done.path.iterdir()) == [
        *("golden.safetensors", "manifest.json", "mmproj-tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "tokenizer.json")
    ]
    assert {row.stage for row in done.report.rows} == {"picture", "prompt", "prefill", "tokens"}
    bundle = Bundle.open(done.path)
    assert [part.covers for part in bundle.manifest.parts] == [("decoder",)]
    schema = json.loads((REPOSITORY / "edge" / "bundle" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads((done.path / "manifest.json").read_text()))
    golden = Golden.load(done.path / "golden.safetensors")
    assert 0.99 < distance(golden.stored.image_embeds, golden.fp32.image_embeds)["cosine"] < 1  # the mmproj's
    pair = [str(done.path / name) for name in ("tiny-Q4_K_M.gguf", "mmproj-tiny-Q8_0.gguf")]
    with load(done.path, threads=1) as session:
        assert session.ask(None, "What is this?", max_tokens=4)
        with pytest.raises(EngineError, match="no vision part") as caught:
            session.ask(np.zeros((9, 9, 3), np.uint8), "What is this?")
        assert f"edge export {pair[0]} --mmproj {pair[1]} -o OUT" in caught.value.hint
    events = measuring(Request(str(done.path), threads=1, n_prompt=(20,), n_gen=(2,), repetitions=1))
    assert [event["test"] for event in events if event["event"] == "sample"] == [
        *("pp20", "tg2", "first token", "own code per token")  # nothing of pictures
    ]
    assert verify_against(bundle, str(checkpoint.folder), None, 1).ok
    whole = ExportRequest(pair[0], tmp_path / "whole", mmproj=Path(pair[1]), threads=1)
    assert export(whole, lambda *_: None).report.ok  # as the hint says
    assert verify_against(Bundle.open(tmp_path / "whole"), pair[0], Path(pair[1]), 1).ok


def test_keys_and_values_of_another_kind(checkpoint, tmp_path):
    done = export(ExportRequest(str(checkpoint.folder), tmp_path / "out", threads=1), lambda *_: None)
    assert call("run", done.path, "Who?", "--cache", "q8_0").err.startswith(
        "error: the KV cache cannot be stored as q8_0"
    )
