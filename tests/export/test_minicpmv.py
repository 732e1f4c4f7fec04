"""MiniCPM-V: slices, embeddings, ids and answers are those of its own code, put together anew; or refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import minicpmv_made as made
import numpy as np
import pytest
import tokenizers
import torch
from conftest import REPOSITORY
from exported import manifest_of
from jsonschema import Draft202012Validator
from minicpmv_made import END, MOST, PATCH, ROWS, SIDE, TOKENS
from safetensors.torch import load_file, save_file
from smolvlm import awkward, change
from test_gguf_bpe import trained
from test_smolvlm import COUNT, FORMATS, QUESTION, TALKS
from variants import Variants, refused

from edge.bundle.manifest import Bundle
from edge.errors import BundleError, UsageError
from edge.inference.session import load
from edge.inputs import patches
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.inputs.views import views
from edge.spec import ImageSpec, VLMSpec
from edge.spec.division import PatchesSpec, SlicesSpec
from edge.spec.pieces import Ids, Slot, Text
from edge.types import Embeddings, OpenOptions, Tokens
from exporters.evaluators import mil
from exporters.export import ExportRequest, export
from exporters.models.attention import GrowingCache
from exporters.sources import prompts
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.image_budget import budgeted
from exporters.verify_checkpoint import verify_against

SCHEMA = REPOSITORY / "edge" / "bundle" / "manifest.schema.json"
IMAGES = awkward()
SPEC_OF_IMAGE = ImageSpec(SIDE, "patches", (127,) * 3, "bicubic", (0.5,) * 3, (0.5,) * 3)
LONG = ("very wide", "very tall", "one row", "one column")  # more than 16 times as long as they are wide
ROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 1024,
    "short_factor": [1 + i / 20 for i in range(32)],
    "long_factor": [2.0] * 32,
}
VARIANTS = {
    "2.6": {},
    "4.0": {"version": 4.0, "text": {"head_dim": 64, "rope_scaling": ROPE}},
    "without the last layer": {"drop_vision_last_layer": True},
    "tied": {"text": {"tie_word_embeddings": True}},
}


def tokenizer():
    return trained("qwen2", ROWS, made.SPECIAL)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("minicpmv")
    return Variants(root, "2.6", lambda folder, variant: made.save(folder, tokenizer(), **VARIANTS[variant]))


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved().folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def spec(saved):
    return prompts.settle(open_checkpoint(str(saved().folder)), None)[0].spec


@pytest.fixture(scope="module")
def bundle(saved, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "out"
    return export(ExportRequest(str(saved().folder), out, threads=1, **FORMATS["onnx"]), lambda *_: None).path


def unpacked(view):
    """The patches of a view as an image [3, H, W] again, and how many of them are none."""
    rows = view[0, 0]
    real = rows[rows[:, -1] == 0]
    down, across = (real[-1, [-3, -2]] + 1).astype(int)
    image = real[:, :-5].reshape(down, across, 3, PATCH, PATCH).transpose(2, 0, 3, 1, 4)
    assert not rows[len(real) :, :-1].any() and (rows[len(real) :, -1] == 1).all()
    return image.reshape(3, down * PATCH, across * PATCH)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_saved_model_is_the_same_model(saved, variant):
    """The embeddings of an image and its slices, and the logits of text."""
    folder, model, _ = saved(variant)
    found = open_checkpoint(str(folder))
    parts = {role: c.load(found.weights) for role, c in found.components.items()}
    for name in ("wide", "tall", "large"):
        given, theirs = IMAGES[name]
        expected = model.see(saved(variant).slices(theirs)[0])
        rows = [parts["projector"](parts["vision"](torch.from_numpy(v))) for v in views(given, found.spec).pixels]
        torch.testing.assert_close(torch.cat(rows, dim=1)[0], expected, rtol=1e-4, atol=1e-4)
    ids, decoder = torch.tensor([[1, 5, 9, 300, 17]]), parts["decoder"]
    cache = GrowingCache(decoder.config.heads, decoder.config.kv_heads, decoder.config.rope)
    logits = decoder(decoder.embed_tokens(ids), cache, everywhere=True)
    torch.testing.assert_close(logits, model.llm(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_views_are_those_of_the_processor(saved, spec, name):
    given, theirs = IMAGES[name]
    found, (expected, grid) = views(given, spec), saved().slices(theirs)
    assert (found.grid or (0, 0)) == grid
    assert len(found.pixels) == len(expected) <= MOST + 1
    for view, want in zip(found.pixels, expected, strict=True):
        assert view.shape == spec.image.view_shape
        ours = unpacked(view)
        if name in LONG and max(want.shape) > 16 * PATCH:  # a view is no longer than that
            assert max(ours.shape) == 16 * PATCH
        else:
            assert ours.shape == want.shape and np.abs(ours - want).max() < 1e-6


def test_awkward_images_are_divided_in_many_ways(spec):
    assert {len(views(given, spec).pixels) for given, _ in IMAGES.values()} >= {1, 3, 7, 10}


@pytest.mark.parametrize("name", [name for name in IMAGES if name not in LONG])
def test_a_smaller_division_is_the_processor_s_of_fewer_slices(saved, spec, name):
    given, theirs = IMAGES[name]
    for most in (1, 2, 3, 5, 8):
        found = views(given, spec, TOKENS * most + 1)
        expected, grid = saved().slices(theirs, max(1, most - 1))
        assert (found.grid or (0, 0)) == grid and len(found.pixels) == len(expected) <= most
        assert all(np.abs(unpacked(v) - want).max() < 1e-6 for v, want in zip(found.pixels, expected, strict=True))


def test_no_view_has_more_patches_than_the_part_takes():
    """Of images of every ratio, of the published size and of the tiny one."""
    for size, table in ((448, 70), (SIDE, made.TABLE)):
        how = PatchesSpec(14, 4 * size // 14, 1, table)
        how = replace(how, most=how.needed(size))
        assert not how.faults(size) and how.most < 1.1 * (size / 14) ** 2 + 16
        image = replace(SPEC_OF_IMAGE, size=size, patches=how)
        ratios = np.exp(np.linspace(-9, 9, 4001))
        found = [patches.size(1000 * ratio, 1000, image, how) for ratio in ratios]
        counts = [wide // 14 * (high // 14) for wide, high in found]
        assert max(counts) <= how.most and min(counts) > 0
        assert max(map(max, found)) == 4 * size


def test_positions_are_exact_fractions():
    """A patch's place in the table, by whole numbers."""
    how = PatchesSpec(1, 128, 128 * 128, 70)
    for count in range(1, 129):
        found = patches.packed(np.zeros((3, count, 2), np.float32), how)[0, 0, : 2 * count]
        assert [int(row) for row in found[::2, 3]] == [i * 70 // count for i in range(count)]
        assert {int(column) for column in found[:, 4]} == {0, 35}


def sequence(said):
    """Messages, as `TALKS` have them, but images first: behind a text its code writes a line break before each."""
    found, system = [], isinstance(said[0], str) and said[0].startswith("system: ")
    for number, content in enumerate(said):
        entries = list(content) if isinstance(content, tuple) else [content]
        role = "system" if system and not number else "assistant" if (number - system) % 2 else "user"
        found.append({"role": role, "content": sorted(entries, key=lambda entry: entry is not None)})
    return found


@pytest.mark.parametrize("image", ["large", "a view"])
@pytest.mark.parametrize("talk", TALKS)
def test_ids_are_those_of_the_processor(saved, spec, talk, image):
    """Of an image in slices, and of one that is a single view; images are counted through the conversation."""
    found, (_, grid) = views(IMAGES[image][0], spec), saved().slices(IMAGES[image][1])
    said = sequence(TALKS[talk])
    if any(sum(entry is not None for entry in message["content"]) > 1 for message in said):
        said = [{**m, "content": [c for c in m["content"] if c is None] + [m["content"][-1]]} for m in said]
    expected = saved().ids(said, grid)
    assert (len(found.pixels) == 1) == (image == "a view")
    shown = Embeddings(np.zeros((len(found.pixels) * TOKENS, 256), np.float32), "it", grid=found.grid)
    asked = [said[0]["content"][0]] if said[0]["role"] == "system" else []
    turns = []
    for message in said[len(asked) :]:
        content = tuple(shown if entry is None else entry for entry in message["content"])
        if message["role"] == "user":
            turns.append(Turn(content))
        else:
            turns.append(replace(turns.pop(), answer=content[0]))
    texts = tokenizer()
    mark, whole = texts.token_to_id("<unk>"), Tokenizer(tokenizers.Tokenizer.from_str(texts.to_str()))
    fed = segments(spec.prompt, whole, turns, *asked)
    assert [i for s in fed for i in (s.ids if isinstance(s, Tokens) else [mark] * len(s))] == expected


def test_the_spec(saved, spec):
    texts, image = tokenizer(), spec.image
    ids = {name: Ids((texts.token_to_id(name),)) for name in made.MARKS}
    assert (image.size, image.fit, image.long_edge, image.resample) == (SIDE, "patches", None, "bicubic")
    assert (image.views, spec.most_views) == (SlicesSpec(MOST, None), MOST + 1)
    assert image.patches == PatchesSpec(PATCH, 16, 22, made.TABLE)
    number = (ids["<image_id>"], Slot("number"), ids["</image_id>"])
    whole = (*number, ids["<image>"], Slot("image"), ids["</image>"])
    assert spec.prompt.image == (*whole, Text("\n"))
    assert spec.prompt.views.overview == whole and spec.prompt.views.overview_first
    assert spec.prompt.views.tiles == (((ids["<slice>"], Slot("image"), ids["</slice>"]),) * MOST,) * MOST
    assert (spec.prompt.image_tokens, spec.prompt.image_question) == (TOKENS, None)
    assert spec.prompt.end_ids == (texts.token_to_id(END),)
    found = open_checkpoint(str(saved().folder), context=200)
    assert found.spec.decoder.context == 200 and not found.notes


def test_the_manifest_is_as_its_schema_has_it(bundle, spec):
    told = manifest_of(bundle)
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(told)
    assert told["image"]["views"] == {"slices": MOST, "image_tokens": None}
    assert told["image"]["patches"] == {"side": PATCH, "longest": 16, "most": 22, "table": made.TABLE}
    assert VLMSpec.from_json(told) == spec
    part = next(part for part in told["parts"] if "vision" in part["covers"])
    assert part["inputs"][0]["shape"] == [1, 1, 22, 3 * PATCH**2 + 5]
    for section, other_values, match in (
        ("views", {"slices": 1}, "1 slices, of which there may be 2 to"),
        ("views", {"slices": MOST + 1}, f"{MOST + 1} tiles a side, and the prompt no pieces"),
        ("patches", {"most": 21}, "21 patches, and a view may have 22"),
        ("patches", {"side": 57}, "patches of 57 pixels"),
        ("patches", None, "fit 'patches' and patches None"),
    ):
        other = json.loads(json.dumps(told))
        other["image"][section] = other_values and {**other["image"][section], **other_values}
        with pytest.raises(BundleError, match=match):
            VLMSpec.from_json(other)
    told["image"]["views"] = {"tiles": [1, 4], "image_tokens": None}
    with pytest.raises(BundleError, match="fit 'patches' and views"):
        VLMSpec.from_json(told)


def told_by(saved, variant, picture):
    """What the model's own code answers."""
    slices, grid = saved(variant).slices(picture)
    texts = tokenizer()
    ids = saved(variant).ids([{"role": "user", "content": [None, QUESTION]}], grid)
    mark, end = texts.token_to_id("<unk>"), texts.token_to_id(END)
    return saved(variant).model.answer(ids, saved(variant).model.see(slices), mark, COUNT, end), len(slices)


@pytest.mark.parametrize(
    ("variant", "format"), [*(("2.6", name) for name in FORMATS), ("4.0", "onnx"), ("4.0", "gguf")]
)
def test_a_bundle_answers_as_its_own_code_does(saved, variant, format, tmp_path, monkeypatch):
    """About slices, and about one view."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    request = ExportRequest(str(saved(variant).folder), tmp_path / "out", threads=1, **FORMATS[format])
    done = export(request, lambda *_: None)
    assert done.report.ok
    with load(done.path, threads=1) as session:
        for picture in (IMAGES[name][0] for name in ("large", "wide", "a view")):
            told, count = told_by(saved, variant, picture)
            session.ask(picture, QUESTION, max_tokens=COUNT)
            assert (list(session.last.token_ids), session.last.image_tokens) == (told, count * TOKENS)
            assert len(set(told)) > 4


def test_core_ml_answers_as_its_own_code_does(saved, tmp_path):
    request = ExportRequest(str(saved().folder), tmp_path / "out", threads=1, recipe="coreml-fp16")
    opened = Bundle.open(export(request, lambda *_: None).path)
    options, spec = OpenOptions(threads=1, context=512), opened.manifest.spec
    see, speak = (mil.evaluate(opened.files(part), options, "fp32") for part in opened.manifest.parts)
    picture = IMAGES["large"][0]
    found = views(picture, spec)
    rows = [see.run({"pixel_values": pixels})["image_embeds"][0] for pixels in found.pixels]
    texts = Tokenizer.open(opened.file(opened.manifest.tokenizer))
    shown = Embeddings(np.concatenate(rows), "it", grid=found.grid)
    logits, told = speak.extend(segments(spec.prompt, texts, [Turn.about(QUESTION, [shown])])), []
    for _ in range(COUNT):
        told.append(int(logits.argmax()))
        logits = speak.extend([Tokens((told[-1],))])
    assert told == told_by(saved, "2.6", picture)[0]


def test_a_budget_at_the_export_and_at_the_run(saved, bundle, tmp_path):
    large = IMAGES["large"][0]  # as many slices as there may be
    for budget, count in ((None, MOST + 1), (MOST * TOKENS, MOST), (2 * TOKENS, 1), (TOKENS, 1)):
        with load(bundle, threads=1, image_tokens=budget) as session:
            session.ask(large, QUESTION, max_tokens=1)
            assert session.last.image_tokens == count * TOKENS
    with pytest.raises(UsageError, match="3 embeddings: one view of it gives 4"):
        load(bundle, image_tokens=TOKENS - 1)
    request = ExportRequest(str(saved().folder), tmp_path / "out", threads=1, image_tokens=17, **FORMATS["onnx"])
    small = Bundle.open(export(request, lambda *_: None).path)
    assert small.manifest.spec.image.views == SlicesSpec(MOST, 17)
    assert small.manifest.spec.most_views == 4
    assert verify_against(small, str(saved().folder), None, 1).ok


def test_a_budget_of_less_than_three_views_is_one(saved):
    found = open_checkpoint(str(saved().folder))
    spec = budgeted(found, 3 * TOKENS - 1).spec
    assert (spec.image.views, spec.prompt.views, spec.most_views) == (None, None, 1)
    assert budgeted(found, 3 * TOKENS).spec.most_views == 3


def test_one_slice_at_most_is_one_view(copy):
    change(copy, "preprocessor_config.json", max_slice_nums=1)
    change(copy, slice_config={"max_slice_nums": 1})
    assert open_checkpoint(str(copy)).spec.image.views is None


def test_images_without_numbers(copy):
    change(copy, "preprocessor_config.json", use_image_id=False)
    change(copy, use_image_id=False)
    found = prompts.settle(open_checkpoint(str(copy)), None)[0].spec.prompt
    assert [piece for piece in found.image if isinstance(piece, Slot)] == [Slot("image")]


def test_conversations_are_kept(bundle, tmp_path):
    with load(bundle, threads=1) as session:
        chat = session.chat([IMAGES["large"][0], IMAGES["wide"][0]])
        first = chat.ask(QUESTION, max_tokens=4)
        chat.save(tmp_path / "chat")
        second = chat.ask("Why?", max_tokens=4)
    with load(bundle, threads=1) as session:
        again = session.resume(tmp_path / "chat")
        assert again.turns[0].answer == first
        assert again.ask("Why?", max_tokens=4) == second
        assert session.last.cached_tokens > 3 * TOKENS


CONFIG = {
    "an older version": ({"version": 2.5}, "version 2.5 of MiniCPM-V"),
    "a later version": ({"version": 4.5}, "version 4.5 of MiniCPM-V"),
    "no version": ({"version": None}, "version None"),
    "another vision encoder": ({"vision_config": {"model_type": "vit"}}, "model_type 'vit'"),
    "no vision_config": ({"vision_config": 7}, "vision_config 7"),
    "patches": ({"vision_config": {"patch_size": 7}}, "patch_size is 14 of the image processor, and 7"),
    "queries": ({"query_num": 5}, "image_feature_size 4: config.json has query_num 5"),
    "no queries": ({"query_num": "4"}, "query_num '4'"),
    "slices": ({"slice_config": {"max_slice_nums": 4}}, "max_slice_nums 9: config.json has 4"),
    "no slice_config": ({"slice_config": 7}, "slice_config 7"),
    "numbers": ({"use_image_id": False}, "use_image_id True: config.json has False"),
    "a layer": ({"drop_vision_last_layer": "yes"}, "drop_vision_last_layer 'yes'"),
    "unknown": ({"insert_layer_id": 6}, "insert_layer_id 6, which MiniCPM-V"),
    "sound": ({"init_audio": True}, "init_audio True, which MiniCPM-V"),
    "heads": ({"hidden_size": 192}, "192 wide, and the resampler's heads 128"),
    "a stretched rotation": (
        {"version": 4.0, "rope_scaling": {**ROPE, "original_max_position_embeddings": 512}},
        "rope_scaling 'longrope'",
    ),
    "another rotation": ({"version": 4.0, "rope_scaling": {**ROPE, "short_factor": [1.0]}}, "1 factors for 64"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised already"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_configs_that_are_refused(copy, case):
    said, match = CONFIG[case]
    refused(change(copy, **said), f"(?s){match}")


PROCESSOR = {
    "no number": ({"max_slice_nums": "9"}, "max_slice_nums '9': no number"),
    "too many": ({"scale_resolution": 4096}, "max_slice_nums 9|9 slices|most|patches"),
    "as they are": ({"slice_mode": False}, "slice_mode False"),
    "a mark": ({"slice_start": ""}, "slice_start '': no token"),
    "another mark": ({"slice_start": "<tile>"}, "no special token '<tile>'"),
    "another class": ({"image_processor_type": "CLIPImageProcessor"}, "'CLIPImageProcessor': another processor"),
    "unknown": ({"do_center_crop": True}, "do_center_crop True"),
    "a deviation": ({"norm_std": [0.5, 0, 0.5]}, "norm_std"),
}


@pytest.mark.parametrize("case", PROCESSOR)
def test_processors_that_are_refused(copy, case):
    said, match = PROCESSOR[case]
    refused(change(copy, "preprocessor_config.json", **said), match)


@pytest.mark.parametrize("name", made.MARKS[:-1])
def test_a_tokenizer_that_lacks_a_token(copy, name):
    path = copy / "tokenizer.json"
    path.write_text(path.read_text().replace(f'"{name}"', '"<another>"'))
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({"eos_token": END, "chat_template": made.TEMPLATE, "tokenizer_class": "Qwen2Tokenizer"}))
    refused(copy, f"no special token '{name}'")


def test_weights_that_do_not_fit_are_listed(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if name != "resampler.proj"}, path)
    refused(copy, "missing: resampler.proj")
    save_file({**tensors, "vpm.extra": torch.ones(1)}, path)
    refused(copy, r"does not use:\n  vpm.extra")
    save_file({**tensors, "resampler.attn.in_proj_bias": torch.ones(9)}, path)
    refused(copy, "there are no rows 0 to 256")


def test_options_that_do_not_go_with_it(copy, tmp_path):
    refused(copy, "--vision-tower does not go", UsageError, vision_tower=tmp_path)
    refused(copy, "--mmproj goes with", UsageError, mmproj=tmp_path / "mmproj.gguf")


def test_an_mmproj_is_refused_by_name(saved, tmp_path):
    request = ExportRequest(str(saved().folder), tmp_path / "out", threads=1, format="gguf", schemes=("f16",))
    with pytest.raises(Exception, match="navit vision encoder is not written") as caught:
        export(request, lambda *_: None)
    assert "--recipe" in caught.value.hint
