"""LLaVA-NeXT and LLaVA-OneVision: pixels, ids, embeddings and answers of their tiles are those of transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import anyres_made as made
import numpy as np
import pytest
import tokenizers
import torch
from anyres_made import END, GRID, ROWS, SIDE
from commands import call
from conftest import REPOSITORY
from exported import manifest_of
from jsonschema import Draft202012Validator
from llava_checkpoints import change
from smolvlm import awkward
from test_gguf_bpe import trained
from test_smolvlm import COUNT, FORMATS, QUESTION, TALKS, messages

from edge.bundle.manifest import Bundle
from edge.errors import BundleError, CheckpointError, ContextError, UsageError
from edge.inference.session import load
from edge.inputs import anyres
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.inputs.views import views
from edge.spec import VLMSpec
from edge.spec.division import AnyresSpec
from edge.types import Embeddings, OpenOptions, Tokens
from exporters.evaluators import mil
from exporters.export import ExportRequest, export
from exporters.models.encoder import Encoder
from exporters.reference import encode
from exporters.sources import prompts
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.image_budget import budgeted
from exporters.verify_checkpoint import verify_against

KINDS = ("Onevision", "Next")
ONE = GRID**2 + 1  # embeddings of a view, with its newline
SCHEMA = REPOSITORY / "edge" / "bundle" / "manifest.schema.json"
IMAGES = awkward()


def tokenizer():
    return trained("qwen2", ROWS, made.SPECIAL)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Both kinds, saved once in a run."""
    root = tmp_path_factory.mktemp("anyres")
    return {kind: made.save(root / kind, tokenizer(), kind) for kind in KINDS}


def opened(saved):
    return prompts.settle(open_checkpoint(str(saved.folder)), None)[0]


@pytest.fixture(scope="module")
def specs(kept):
    return {kind: opened(saved).spec for kind, saved in kept.items()}


@pytest.fixture(scope="module")
def encoders(kept):
    found = {kind: open_checkpoint(str(saved.folder)) for kind, saved in kept.items()}
    return {kind: checkpoint.encoder.load(checkpoint.weights) for kind, checkpoint in found.items()}


@pytest.fixture(scope="module")
def bundle(kept, tmp_path_factory):
    request = ExportRequest(str(kept["Onevision"].folder), tmp_path_factory.mktemp("bundle") / "out", threads=1)
    return export(replace(request, schemes=("fp32",)), lambda *_: None).path


def seen(encoder, found):
    assert isinstance(encoder, Encoder)
    return [encode(encoder, pixels)[0] for pixels in found.pixels]


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_views_and_embeddings_are_those_of_transformers(kept, specs, encoders, kind, name):
    """Pixels of the whole and of each tile, and what the model makes of them together."""
    given, theirs = IMAGES[name]
    found, expected = views(given, specs[kind]), kept[kind].pixels(theirs)
    assert len(found.pixels) == len(expected)
    assert max(np.abs(view[0] - want).max() for view, want in zip(found.pixels, expected, strict=True)) < 1e-6
    rows = anyres.joined(seen(encoders[kind], found), found.lines)
    wanted = kept[kind].embeddings(theirs)
    assert rows.shape == wanted.shape == (GRID**2 + found.lines.tokens, 64)
    np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-5)


def test_awkward_images_are_shrunk_and_not(specs):
    """The images above show each: lines that are resized, lines that padding cut off, and lines as they are."""
    lines = [views(given, specs["Onevision"]).lines for given, _ in IMAGES.values()]
    whole = [(high * GRID - 2 * one.top, wide * GRID - 2 * one.left) for one in lines for high, wide in (one.grid,)]
    assert any((one.height, one.width) != size for one, size in zip(lines, whole, strict=True))
    assert any((one.height, one.width) == size for one, size in zip(lines, whole, strict=True))
    assert any(one.top for one in lines) and any(one.left for one in lines)
    assert len({one.grid for one in lines}) > 5


@torch.inference_mode()
def test_one_view_is_padded_and_ends_with_the_newline(kept, encoders):
    """As the processor and the model see several images of a question."""
    saved = kept["Onevision"]
    spec = budgeted(open_checkpoint(str(saved.folder)), ONE).spec
    assert (spec.image.views, spec.image.fit, spec.prompt.image_tokens) == (None, "pad", ONE)
    image, other = IMAGES["wide"][1], IMAGES["tall"][1]
    both = saved.processor.image_processor([[image, other]], return_tensors="pt")
    found = views(image, spec)
    assert len(found.pixels) == 1 and found.lines is None
    assert np.abs(found.pixels[0][0] - both["pixel_values"][0][0].numpy()).max() < 1e-6
    told = dict(both) | {"pixel_values": both["pixel_values"][:, :1]}
    wanted = saved.model.get_image_features(**told).pooler_output[0].numpy()
    np.testing.assert_allclose(seen(encoders["Onevision"], found)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("image", ["wide", "large and tall"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("talk", TALKS)
def test_ids_are_those_of_the_processor(kept, specs, kind, talk, image):
    """Conversations that write images first, as the template does, and of OneVision one image in a question."""
    saved, spec, picture = kept[kind], specs[kind], IMAGES[image][0]
    said = messages(*TALKS[talk])
    for message in said:
        message["content"].sort(key=lambda entry: entry["type"] != "image")
        message["content"][:] = joined_texts(message["content"], 1 if kind == "Onevision" else 2)
    count = sum(e["type"] == "image" for message in said for e in message["content"])
    expected = saved.asked(said, [picture] * count)["input_ids"][0].tolist()
    found = views(picture, spec)
    shown = Embeddings(np.zeros((GRID**2 + found.lines.tokens, 64), np.float32), "it")
    asked = [said[0]["content"][0]["text"]] if said[0]["role"] == "system" else []
    turns = []
    for message in said[len(asked) :]:
        content = tuple(shown if e["type"] == "image" else e["text"] for e in message["content"])
        turns.append(Turn(content)) if message["role"] == "user" else turns.append(
            replace(turns.pop(), answer=content[0])
        )
    texts = tokenizer()
    mark, whole = texts.token_to_id("<image>"), Tokenizer(tokenizers.Tokenizer.from_str(texts.to_str()))
    fed = segments(spec.prompt, whole, turns, *asked)
    assert [i for s in fed for i in (s.ids if isinstance(s, Tokens) else [mark] * len(s))] == expected


def joined_texts(content, images):
    """With so many images at most, and one text behind them: what a user types once."""
    texts = "".join(entry["text"] for entry in content if entry["type"] == "text")
    return [*[entry for entry in content if entry["type"] == "image"][:images], {"type": "text", "text": texts}]


def test_a_template_that_joins_several_images_is_told(kept):
    """OneVision's writes the line break behind the last of them only."""
    (one, other) = (prompts.settle(open_checkpoint(str(kept[kind].folder)), None)[1] for kind in KINDS)
    assert "writes several images of one question otherwise" in one
    assert other is None


@pytest.mark.parametrize(
    ("kind", "format"), [("Onevision", name) for name in FORMATS] + [("Next", "onnx"), ("Next", "gguf")]
)
def test_a_bundle_answers_as_transformers_does(kept, kind, format, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    saved, end = kept[kind], tokenizer().token_to_id(END)
    request = ExportRequest(str(saved.folder), tmp_path / "out", threads=1, **FORMATS[format])
    done = export(request, lambda *_: None)
    assert done.report.ok
    with load(done.path, threads=1) as session:
        for image in ("wide", "large and tall"):
            picture = IMAGES[image][0]
            told = saved.answer(saved.asked(messages((None, QUESTION)), [picture]), COUNT, end)
            session.ask(picture, QUESTION, max_tokens=COUNT)
            assert list(session.last.token_ids) == told
            assert len(set(told)) > 4


def test_core_ml_answers_as_transformers_does(kept, tmp_path):
    saved, end = kept["Onevision"], tokenizer().token_to_id(END)
    request = ExportRequest(str(saved.folder), tmp_path / "out", threads=1, recipe="coreml-fp16")
    opened = Bundle.open(export(request, lambda *_: None).path)
    options, spec = OpenOptions(threads=1, context=512), opened.manifest.spec
    see, speak = (mil.evaluate(opened.files(part), options, "fp32") for part in opened.manifest.parts)
    found = views(IMAGES["wide"][0], spec)
    rows = [see.run({"pixel_values": pixels})["image_embeds"][0] for pixels in found.pixels]
    texts = Tokenizer.open(opened.file(opened.manifest.tokenizer))
    fed = segments(spec.prompt, texts, [Turn.about(QUESTION, [Embeddings(anyres.joined(rows, found.lines), "it")])])
    logits, told = speak.extend(fed), []
    for _ in range(COUNT):
        told.append(int(logits.argmax()))
        logits = speak.extend([Tokens((told[-1],))])
    assert told == saved.answer(saved.asked(messages((None, QUESTION)), [IMAGES["wide"][0]]), COUNT, end)


OWN = {
    "OneVision": ("Onevision", "llava_qwen", "anyres_max_4", {}),
    "OneVision, a range": ("Onevision", "llava_qwen", "anyres_max_4", {"image_grid_pinpoints": "(1x1),...,(4x4)"}),
    "NeXT": ("Next", "llava_llama", "anyres", {}),
    "NeXT, as Python writes a list": ("Next", "llava", "anyres", {"image_grid_pinpoints": str(made.NEXT_POINTS)}),
}


@pytest.mark.parametrize("name", OWN)
def test_llava_s_own_layout_is_the_same_model(kept, specs, name, tmp_path):
    kind, model_type, aspect, said = OWN[name]
    found = open_checkpoint(str(made.as_llava(kept[kind], tmp_path / "own", model_type, aspect, **said)))
    plain = open_checkpoint(str(kept[kind].folder))
    assert replace(found.spec.image, views=None) == replace(plain.spec.image, views=None)
    ours, theirs = found.spec.image.views, plain.spec.image.views
    assert sorted(ours.grids) == sorted(theirs.grids) and replace(ours, grids=theirs.grids) == theirs
    assert found.spec.prompt.image_tokens == ONE
    values = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    one, other = (checkpoint.encoder.load(checkpoint.weights) for checkpoint in (found, plain))
    with torch.inference_mode():
        assert torch.equal(one(values), other(values))


def test_a_single_view_of_llava_s_own_may_end_with_a_newline(kept, tmp_path):
    folder = made.as_llava(kept["Onevision"], tmp_path / "own", "llava_qwen", "pad")
    found = open_checkpoint(str(folder)).spec
    assert (found.image.views, found.image.fit, found.prompt.image_tokens) == (None, "pad", ONE)


def test_the_manifest_is_as_its_schema_has_it(bundle, specs):
    told = manifest_of(bundle)
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(told)
    grids = [[high // SIDE, wide // SIDE] for high, wide in made.ONEVISION_POINTS]
    assert told["image"]["views"] == {"grids": grids, "side": GRID, "most_tiles": 4, "image_tokens": None}
    assert Bundle.open(bundle).manifest.spec == specs["Onevision"]
    assert "17 rows a view, 17 views at most" in " ".join(call("inspect", bundle).out.split())
    without = {**told, "image": {k: v for k, v in told["image"].items() if k != "views"}}
    assert VLMSpec.from_json(without).most_views == 1


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"grids": []}, "grids"),
        ({"grids": [[1, 400]]}, "edges may have 1 to 292 tiles"),
        ({"grids": [[0, 1]]}, "grids"),
        ({"side": 5}, "5 embeddings a side and a newline, and the prompt 17"),
        ({"most_tiles": 0}, "most_tiles 0"),
        ({"image_tokens": "all"}, "image_tokens 'all'"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(bundle, said, match):
    told = manifest_of(bundle)
    told["image"]["views"] |= said
    with pytest.raises(BundleError, match=match):
        VLMSpec.from_json(told)


def test_the_largest_division_that_a_budget_allows(specs):
    """Fewer embeddings, in steps down to one view; never more than are allowed."""
    image, spec = IMAGES["large"][0], specs["Onevision"]
    counts = []
    for most in range(ONE, 120):
        found = views(image, spec, most)
        count = ONE if found.lines is None else GRID**2 + found.lines.tokens
        assert count <= most
        counts.append(count)
    assert counts == sorted(counts) and counts[0] == ONE and len(set(counts)) >= 4
    assert counts[-1] == GRID**2 + views(image, spec).lines.tokens


def test_a_budget_at_the_export_and_at_the_run(kept, bundle, tmp_path):
    wide = IMAGES["wide"][0]
    with load(bundle, threads=1) as session:
        session.ask(wide, QUESTION, max_tokens=1)
        whole = session.last.image_tokens
    assert whole == GRID**2 + views(wide, Bundle.open(bundle).manifest.spec).lines.tokens
    with load(bundle, threads=1, image_tokens=whole - 1) as session:
        session.ask(wide, QUESTION, max_tokens=1)
        assert ONE < session.last.image_tokens < whole
    with load(bundle, threads=1, image_tokens=ONE) as session:
        session.ask(wide, QUESTION, max_tokens=1)
        assert session.last.image_tokens == ONE
    with pytest.raises(UsageError, match="16 embeddings: one view of it gives 17"):
        load(bundle, image_tokens=ONE - 1)
    request = ExportRequest(str(kept["Onevision"].folder), tmp_path / "out", threads=1, schemes=("fp32",))
    small = export(replace(request, image_tokens=40), lambda *_: None).path
    assert Bundle.open(small).manifest.spec.image.views.image_tokens == 40
    assert verify_against(Bundle.open(small), str(kept["Onevision"].folder), None, 1).ok
    with load(small, threads=1) as session:
        session.ask(wide, QUESTION, max_tokens=1)
        assert ONE < session.last.image_tokens <= 40


def test_tiles_that_exceed_the_context_are_refused_with_figures(bundle):
    with load(bundle, threads=1, context=64) as session:
        with pytest.raises(ContextError, match=r"needs \d+ positions, \d+ of them for tiles, and") as caught:
            session.ask(IMAGES["large"][0], QUESTION)
        budget = int(caught.value.hint.split()[1])
    with load(bundle, threads=1, context=64, image_tokens=budget) as session:
        session.ask(IMAGES["large"][0], QUESTION, max_tokens=1)
        assert session.last.image_tokens <= budget


def test_conversations_are_kept(bundle, tmp_path):
    picture = IMAGES["wide"][0]
    with load(bundle, threads=1) as session:
        chat = session.chat(picture)
        first = chat.ask(QUESTION, max_tokens=4)
        chat.save(tmp_path / "chat")
        second = chat.ask("Why?", max_tokens=4)
    with load(bundle, threads=1) as session:
        again = session.resume(tmp_path / "chat")
        assert again.turns[0].answer == first
        assert again.ask("Why?", max_tokens=4) == second
        assert session.last.cached_tokens > ONE


REFUSED = {
    "no anyres": ("Onevision", {"vision_aspect_ratio": "pad"}, "vision_aspect_ratio 'pad' is not supported"),
    "no number": ("Onevision", {"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio is 'anyres'"),
    "another number": ("Onevision", {"vision_aspect_ratio": "anyres_max_9"}, "config.json makes it 'anyres_max_9'"),
    "no newline": ("Next", {"use_image_newline_parameter": False}, "use_image_newline_parameter False"),
    "other pixels": ("Next", {"image_grid_pinpoints": [[30, 60]]}, r"image_grid_pinpoints is \[\[30, 60\]\]"),
    "no pairs": ("Next", {"image_grid_pinpoints": [28, 56]}, r"image_grid_pinpoints is \[28, 56\]"),
    "a text": ("Next", {"image_grid_pinpoints": "(1x1),...,(2x2)"}, "image_grid_pinpoints is"),
    "other grids": ("Next", {"image_grid_pinpoints": [[28, 56]]}, "disagree on image_grid_pinpoints"),
    "a class token": ("Next", {"vision_feature_select_strategy": "full"}, "gives 17 embeddings"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_another_model_is_refused_by_name(kept, case, tmp_path):
    kind, said, match = REFUSED[case]
    copy = shutil.copytree(kept[kind].folder, tmp_path / "copy")
    if case != "another number":
        own = ("vision_feature_select_strategy", "num_additional_image_tokens", "vision_aspect_ratio")
        change(copy, "processor_config.json", drop=own)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(str(change(copy, **said)))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("model_type", "aspect", "said", "match"),
    [
        ("llava_qwen", "anyres_max_4", {"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type 'spatial'"),
        ("llava_qwen", "anyres_max_4", {"mm_patch_merge_type": "flat"}, "tiles without newlines"),
        ("llava_qwen", "anyres_maximum", {}, "image_aspect_ratio 'anyres_maximum'"),
        ("llava_qwen", "anyres", {"image_grid_pinpoints": "open('x')"}, "image_grid_pinpoints is"),
        ("llava_qwen", "anyres", {"image_grid_pinpoints": None}, "image_grid_pinpoints is None"),
        ("llava-qwen2", "anyres", {}, "mm_patch_merge_type 'spatial_unpad'"),
    ],
)
def test_what_llava_s_own_layout_cannot_be(kept, model_type, aspect, said, match, tmp_path):
    folder = made.as_llava(kept["Onevision"], tmp_path / "own", model_type, aspect, **said)
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(folder))


def test_an_mmproj_is_refused_by_name(kept, tmp_path):
    request = ExportRequest(str(kept["Next"].folder), tmp_path / "out", threads=1, format="gguf", schemes=("f16",))
    with pytest.raises(Exception, match="newline") as caught:
        export(request, lambda *_: None)
    assert "--recipe" in caught.value.hint


def test_defaults_are_those_of_transformers():
    from transformers import LlavaNextConfig, LlavaOnevisionConfig

    from exporters.checkpoints.llava_hf import KINDS as presets

    for config in (LlavaNextConfig(), LlavaOnevisionConfig()):
        preset = presets[config.model_type]
        told = {name: getattr(config, name) for name in preset.defaults}
        told["image_grid_pinpoints"] = tuple(map(tuple, told["image_grid_pinpoints"]))
        assert told == preset.defaults
        assert {name: getattr(config.vision_config, name) for name in preset.vision} == preset.vision
        assert config.text_config.model_type == preset.text


def test_the_spec_of_no_grid_is_no_spec():
    assert AnyresSpec((), 4, None, None).faults(28, None)
    assert AnyresSpec(((1, 2),), 4, None, None).faults(28, 56)
