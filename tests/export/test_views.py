"""Images in tiles, as SmolVLM's processor splits them: pixels, ids and answers are those of transformers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import smolvlm as made
import tokenizers
from commands import call
from conftest import REPOSITORY
from exported import manifest_of
from jsonschema import Draft202012Validator
from smolvlm import END, LONG, SIDE, TOKENS
from test_smolvlm import COUNT, FORMATS, QUESTION, TALKS, messages, tokenizer

from edge.bundle.golden import Golden
from edge.bundle.manifest import Bundle
from edge.devices import profile
from edge.errors import BundleError, ContextError, UsageError
from edge.inference.session import load
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.inputs.views import views
from edge.planning.fit import fit, prompt_tokens
from edge.planning.sizes import sizes
from edge.spec import VLMSpec
from edge.spec.division import ViewsSpec
from edge.types import Embeddings, OpenOptions, Tokens
from edge.verify import asked, compare, shown, verify
from exporters import pipeline
from exporters.evaluators import mil
from exporters.export import ExportRequest, export
from exporters.sources import prompts
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.image_budget import budgeted
from exporters.verify_checkpoint import verify_against

WIDE = made.awkward()["wide"][0]  # 61 x 47, which is 3 x 3 tiles of a longer edge of 144
SCHEMA = REPOSITORY / "edge" / "bundle" / "manifest.schema.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return made.save(tmp_path_factory.mktemp("tiles") / "checkpoint", tokenizer(), splits=True)


@pytest.fixture(scope="module")
def spec(saved):
    return prompts.settle(open_checkpoint(str(saved.folder)), None)[0].spec


@pytest.fixture(scope="module")
def bundle(saved, tmp_path_factory):
    request = ExportRequest(str(saved.folder), tmp_path_factory.mktemp("bundle") / "out", threads=1, **FORMATS["onnx"])
    return export(request, lambda *_: None).path


@pytest.mark.parametrize("name", made.awkward())
def test_views_are_those_of_the_processor(saved, spec, name):
    given, theirs = made.awkward()[name]
    found, expected = views(given, spec), saved.pixels(theirs)
    rows, columns = found.grid
    assert len(found.pixels) == len(expected) == rows * columns + 1
    assert max(np.abs(view[0] - want).max() for view, want in zip(found.pixels, expected, strict=True)) < 1e-6


@pytest.mark.parametrize("name", ["wide", "tall", "very wide", "one pixel", "large and tall"])
def test_a_smaller_division_is_the_processor_s_of_a_smaller_size(saved, spec, name):
    given, theirs = made.awkward()[name]
    whole = len(views(given, spec).pixels)
    found = views(given, spec, TOKENS * whole - 1)
    size = {"longest_edge": 2 * SIDE}
    expected = saved.processor.image_processor(theirs, size=size, return_tensors="np")["pixel_values"][0]
    assert len(found.pixels) == len(expected) < whole
    assert max(np.abs(view[0] - want).max() for view, want in zip(found.pixels, expected, strict=True)) < 1e-6


def test_the_largest_division_that_is_allowed(spec):
    counts = [len(views(WIDE, spec, TOKENS * most).pixels) for most in range(1, 13)]
    assert counts == [1, 1, 1, 1, 5, 5, 5, 5, 5, 10, 10, 10]
    alone = views(WIDE, spec, 5 * TOKENS - 1)
    assert alone.grid is None
    np.testing.assert_array_equal(
        alone.pixels[0], views(WIDE, replace(spec, image=replace(spec.image, views=None))).pixels[0]
    )


@pytest.mark.parametrize("image", ["wide", "tall", "very wide"])
@pytest.mark.parametrize("talk", TALKS)
def test_ids_are_those_of_the_processor(saved, spec, talk, image):
    picture, said = made.awkward()[image][0], messages(*TALKS[talk])
    count = sum(e["type"] == "image" for message in said for e in message["content"])
    expected = saved.asked(said, [picture] * count)["input_ids"][0].tolist()
    found = views(picture, spec)
    rows = np.arange(len(found.pixels) * TOKENS, dtype=np.float32)[:, None]
    shown = Embeddings(rows, "it", grid=found.grid)
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
    if count:
        seen = np.concatenate([s.rows for s in fed if isinstance(s, Embeddings)])
        np.testing.assert_array_equal(seen, np.concatenate([rows] * count))  # each view's own, in their order


def test_golden_is_replayed_in_all_its_views(bundle, spec):
    """The drawing, 400 x 300, is 3 x 3 tiles."""
    opened = Bundle.open(bundle)
    golden, told = Golden.load(opened.file(opened.manifest.golden)), opened.manifest.golden_prompt["views"]
    assert (told["count"], told["image_tokens"], told["segments"].count(None)) == (10, 10 * TOKENS, 10)
    assert golden.divided.fp32.image_embeds.shape == (1, 10 * TOKENS, spec.decoder.hidden)
    report = verify(opened)
    assert report.ok
    assert {row.stage for row in report.rows} >= {"views.vision", "views.prefill", "views.tokens"}
    spoilt = replace(golden.divided, stored=replace(golden.divided.stored, logits=golden.stored.logits))
    with load(bundle, threads=1) as session:
        found = compare(session, replace(golden, divided=spoilt))
    assert [row.stage for row in found.rows if not row.ok][:1] == ["views.prefill"]
    with pytest.raises(BundleError, match="the manifest no prompt for them"):
        list(asked({"segments": []}, golden))
    with pytest.raises(BundleError, match="3 embeddings for 2 views"):
        shown([[1], None, None], np.zeros((3, 2), np.float32))


def test_what_is_foreseen_counts_all_views(bundle):
    manifest, device = Bundle.open(bundle).manifest, profile("rpi5")
    told = fit(manifest, device)
    sizes_of = sizes(manifest, manifest.parts)
    assert (sizes_of.views, sizes_of.image_tokens) == (10, 10 * TOKENS)
    one = {name: value for name, value in manifest.golden_prompt.items() if name != "views"}
    single = replace(manifest, golden_prompt=one)
    assert prompt_tokens(manifest) > prompt_tokens(single) + 9 * TOKENS
    assert told.value("vision") == pytest.approx(10 * fit(single, device).value("vision"))
    assert told.value("peak memory, one answer") >= fit(single, device).value("peak memory, one answer")


def test_calibration_sees_all_views(saved, tmp_path):
    WIDE.save(tmp_path / "wide.png")
    line = {"image": "wide.png", "question": QUESTION, "answer": "Noise."}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    fed = []
    with pytest.MonkeyPatch.context() as patch:
        plain = pipeline.segments
        patch.setattr(pipeline, "segments", lambda *given: fed.append(plain(*given)) or fed[-1])
        request = ExportRequest(str(saved.folder), tmp_path / "out", threads=1, calib=tmp_path, **FORMATS["onnx"])
        assert export(request, lambda *_: None).report.ok
    views_of = [sum(isinstance(segment, Embeddings) for segment in prompt) for prompt in fed]
    assert views_of.count(10) >= 2  # golden and the calibration


def test_a_context_that_tiles_exceed_is_refused_before_the_export(saved, tmp_path):
    request = ExportRequest(str(saved.folder), tmp_path / "out", threads=1, context=150, **FORMATS["onnx"])
    with pytest.raises(UsageError, match=r"takes \d+ positions, 160 of them for its tiles, with its answer") as caught:
        export(request, lambda *_: None)
    budget = int(caught.value.hint.rpartition(" ")[2])
    assert export(replace(request, image_tokens=budget), lambda *_: None).report.ok


def test_the_manifest_is_as_its_schema_has_it(bundle, spec):
    told = manifest_of(bundle)
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(told)
    assert told["image"]["views"] == {"grid": 3, "image_tokens": None}
    assert [len(row) for row in told["prompt"]["views"]["tiles"]] == [3, 3, 3]
    assert Bundle.open(bundle).manifest.spec == spec
    assert spec.most_views == 10
    assert "16 rows a view, 10 views at most" in " ".join(call("inspect", bundle).out.split())
    without = {**told, "image": {k: v for k, v in told["image"].items() if k != "views"}}
    assert VLMSpec.from_json(without).most_views == 1


@pytest.mark.parametrize(
    ("section", "said", "match"),
    [
        ("image", {"views": {"grid": 4, "image_tokens": None}}, "views of 4 tiles, and 144"),
        ("image", {"views": {"grid": 3}}, "views lacks image_tokens"),
        ("prompt", {"views": None}, "3 tiles a side, and the prompt no pieces"),
        ("prompt", {"views": {"tiles": [[[]]], "row_end": [], "overview": []}}, "'image' 0 times"),
        ("prompt", {"views": {"tiles": [[7]], "row_end": [], "overview": []}}, "views"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(bundle, section, said, match):
    told = manifest_of(bundle)
    told[section] |= said
    with pytest.raises(BundleError, match=match):
        VLMSpec.from_json(told)


@pytest.mark.parametrize("format", FORMATS)
def test_a_bundle_answers_as_transformers_does(saved, format, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    request = ExportRequest(str(saved.folder), tmp_path / "out", threads=1, **FORMATS[format])
    done = export(request, lambda *_: None)
    assert done.report.ok
    end = tokenizer().token_to_id(END)
    with load(done.path, threads=1) as session:
        for image in ("wide", "tall"):  # whose tokens are no near ties
            picture = made.awkward()[image][0]
            told = saved.answer(saved.asked(messages((None, QUESTION)), [picture]), COUNT, end)
            session.ask(picture, QUESTION, max_tokens=COUNT)
            assert list(session.last.token_ids) == told
            assert len(set(told)) > 4


def test_core_ml_answers_as_transformers_does(saved, tmp_path):
    request = ExportRequest(str(saved.folder), tmp_path / "out", threads=1, recipe="coreml-fp16")
    opened = Bundle.open(export(request, lambda *_: None).path)
    options, spec = OpenOptions(threads=1, context=512), opened.manifest.spec
    see, speak = (mil.evaluate(opened.files(part), options, "fp32") for part in opened.manifest.parts)
    found = views(WIDE, spec)
    rows = [see.run({"pixel_values": pixels})["image_embeds"][0] for pixels in found.pixels]
    texts = Tokenizer.open(opened.file(opened.manifest.tokenizer))
    shown = Embeddings(np.concatenate(rows), "it", grid=found.grid)
    logits, told = speak.extend(segments(spec.prompt, texts, [Turn.about(QUESTION, [shown])])), []
    for _ in range(COUNT):
        told.append(int(logits.argmax()))
        logits = speak.extend([Tokens((told[-1],))])
    assert told == saved.answer(saved.asked(messages((None, QUESTION)), [WIDE]), COUNT, tokenizer().token_to_id(END))


def test_a_budget_at_the_export_and_at_the_run(saved, bundle, tmp_path):
    with load(bundle, threads=1) as session:
        session.ask(WIDE, QUESTION, max_tokens=1)
        assert session.last.image_tokens == 10 * TOKENS
    with load(bundle, threads=1, image_tokens=9 * TOKENS) as session:
        session.ask(WIDE, QUESTION, max_tokens=1)
        assert session.last.image_tokens == 5 * TOKENS
    with load(bundle, threads=1, image_tokens=TOKENS) as session:
        session.ask(WIDE, QUESTION, max_tokens=1)
        assert session.last.image_tokens == TOKENS
    with pytest.raises(UsageError, match="15 embeddings: one view of it gives 16") as caught:
        load(bundle, image_tokens=TOKENS - 1)
    assert f"--image-tokens {TOKENS}" in caught.value.hint
    request = ExportRequest(str(saved.folder), tmp_path / "out", threads=1, image_tokens=90, **FORMATS["onnx"])
    small = export(request, lambda *_: None).path
    assert Bundle.open(small).manifest.spec.image.views == ViewsSpec(3, 90)
    assert verify_against(Bundle.open(small), str(saved.folder), None, 1).ok
    with load(small, threads=1) as session:
        session.ask(WIDE, QUESTION, max_tokens=1)
        assert session.last.image_tokens == 5 * TOKENS


def test_a_budget_of_less_than_three_views_is_one(saved):
    found = open_checkpoint(str(saved.folder))
    for most in (TOKENS, 3 * TOKENS - 1):
        spec = budgeted(found, most).spec
        assert (spec.image.views, spec.prompt.views, spec.most_views) == (None, None, 1)
    assert budgeted(found, None).spec == found.spec
    with pytest.raises(UsageError, match="one view of it gives 16"):
        budgeted(found, 3)


def test_tiles_that_exceed_the_context_are_refused_with_figures(bundle):
    figures = r"needs \d+ positions, 160 of them for tiles, and the context holds 128"
    with load(bundle, threads=1, context=128) as session:
        with pytest.raises(ContextError, match=figures) as caught:
            session.ask(WIDE, QUESTION)
        budget = int(caught.value.hint.split()[1])
    with load(bundle, threads=1, context=128, image_tokens=budget) as session:
        session.ask(WIDE, QUESTION, max_tokens=1)
        assert session.last.image_tokens == 5 * TOKENS <= budget


def test_views_are_encoded_once_and_conversations_kept(bundle, tmp_path):
    with load(bundle, threads=1) as session:
        chat = session.chat(WIDE)
        first = chat.ask(QUESTION, max_tokens=4)
        chat.save(tmp_path / "chat")
        second = chat.ask("Why?", max_tokens=4)
        session.ask(WIDE, QUESTION, max_tokens=1)
        assert session.last.timings.vision_ms == 0
    with load(bundle, threads=1) as session:
        again = session.resume(tmp_path / "chat")
        assert again.turns[0].answer == first and again.turns[0].content[0].grid == (3, 3)
        assert again.ask("Why?", max_tokens=4) == second
        assert session.last.cached_tokens > 10 * TOKENS


def test_a_longer_edge_of_one_view_has_no_tiles(saved, tmp_path):
    import shutil

    folder = shutil.copytree(saved.folder, tmp_path / "copy")
    path = folder / "processor_config.json"
    told = json.loads(path.read_text())
    told["image_processor"]["size"] = {"longest_edge": SIDE}
    path.write_text(json.dumps(told))
    found = open_checkpoint(str(folder)).spec
    assert (found.image.views, found.image.long_edge) == (None, SIDE)
    expected = saved.processor.image_processor(WIDE, size={"longest_edge": SIDE}, return_tensors="np")
    assert np.abs(views(WIDE, found).pixels[0] - expected["pixel_values"][0]).max() < 1e-6
    assert LONG > SIDE
