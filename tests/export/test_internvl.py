"""InternVL: embeddings, pixels, ids and answers, of one view and of tiles, are those of transformers; or refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import internvl_made as made
import numpy as np
import pytest
import tokenizers
import torch
from conftest import REPOSITORY
from exported import manifest_of
from internvl_made import END, MOST, ROWS, SIDE, TOKENS
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file
from smolvlm import awkward, change
from test_gguf_bpe import trained
from test_smolvlm import COUNT, FORMATS, QUESTION, TALKS, messages
from variants import Variants, refused

from edge.bundle.manifest import Bundle
from edge.errors import BundleError, UsageError
from edge.inference.session import load
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.inputs.views import views
from edge.spec import VLMSpec
from edge.spec.division import RatioSpec
from edge.spec.pieces import Ids, Slot, Text
from edge.types import Embeddings, OpenOptions, Tokens
from exporters.checkpoints import internvl
from exporters.evaluators import mil
from exporters.export import ExportRequest, export
from exporters.models.attention import GrowingCache
from exporters.models.vision import internvit
from exporters.sources import prompts, ratio_preprocessor
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.image_budget import budgeted
from exporters.verify_checkpoint import verify_against

SCHEMA = REPOSITORY / "edge" / "bundle" / "manifest.schema.json"
IMAGES = awkward()
VARIANTS = {
    "InternVL3": {},
    "InternVL3.5": {"text": {"model_type": "qwen3", "head_dim": 16}},
    "norms of queries and keys": {
        "vision": {"use_qk_norm": True, "attention_bias": False, "norm_type": "rms_norm", "use_mask_token": True}
    },
    "an earlier layer": {"vision_feature_layer": -2},
    "tied": {"tie_word_embeddings": True, "text": {"model_type": "llama", "tie_word_embeddings": True}},
    "patches by four": {"downsample_ratio": 0.25, "image_seq_length": 1, "projector_hidden_act": "silu"},
}


def tokenizer():
    return trained("qwen2", ROWS, made.SPECIAL)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("internvl")
    return Variants(root, "InternVL3", lambda folder, variant: made.save(folder, tokenizer(), **VARIANTS[variant]))


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


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_saved_model_is_the_same_model(saved, variant):
    """The embeddings of an image, and the logits of text."""
    folder, model, _ = saved(variant)
    found = open_checkpoint(str(folder))
    parts = {role: c.load(found.weights) for role, c in found.components.items()}
    values = torch.randn(1, 3, SIDE, SIDE)
    expected = model.get_image_features(values).pooler_output
    torch.testing.assert_close(parts["projector"](parts["vision"](values)), expected, rtol=1e-4, atol=1e-5)
    assert found.spec.prompt.image_tokens == expected.shape[1]
    ids, decoder = torch.tensor([[1, 5, 9, 300, 17]]), parts["decoder"]
    cache = GrowingCache(decoder.config.heads, decoder.config.kv_heads, decoder.config.rope)
    logits = decoder(decoder.embed_tokens(ids), cache, everywhere=True)
    torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_the_names_that_transformers_has_in_memory_are_read_too(saved, copy):
    plain = open_checkpoint(str(saved().folder))
    path = copy / "model.safetensors"
    spelled = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    tensors = {}
    for name, tensor in load_file(path).items():
        old = next((old for old in spelled if name.startswith(old)), None)
        tensors[spelled[old] + name.removeprefix(old) if old else f"model.{name}"] = tensor
    save_file(tensors, path)
    found = open_checkpoint(str(copy))
    assert found.spec == plain.spec
    for role, component in found.components.items():
        expected = plain.components[role].load(plain.weights).state_dict()
        torch.testing.assert_close(component.load(found.weights).state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", IMAGES)
def test_views_are_those_of_the_processor(saved, spec, name):
    given, theirs = IMAGES[name]
    found, expected = views(given, spec), saved().pixels(theirs)
    assert len(found.pixels) == len(expected) <= MOST + 1
    assert max(np.abs(view[0] - want).max() for view, want in zip(found.pixels, expected, strict=True)) < 1e-6


def test_awkward_images_are_divided_in_many_ways(spec):
    assert {len(views(given, spec).pixels) for given, _ in IMAGES.values()} >= {1, 3, 5, 7}


@pytest.mark.parametrize("name", IMAGES)
def test_a_smaller_division_is_the_processor_s_of_fewer_tiles(saved, spec, name):
    given, theirs = IMAGES[name]
    for most in range(1, MOST + 2):
        found = views(given, spec, TOKENS * most + 1)
        expected = saved().pixels(theirs, max_patches=max(1, most - 1))
        assert len(found.pixels) == len(expected) <= most
        assert np.abs(np.concatenate(found.pixels) - expected).max() < 1e-6


def test_the_fewest_tiles(saved, spec):
    """An image that may not have so few embeddings is one view."""
    least = replace(spec, image=replace(spec.image, views=RatioSpec((3, 6), None)))
    for given, theirs in IMAGES.values():
        expected = saved().pixels(theirs, min_patches=3)
        assert np.abs(np.concatenate(views(given, least).pixels) - expected).max() < 1e-6
    given = IMAGES["large"][0]
    assert [len(views(given, least, TOKENS * most).pixels) for most in (1, 3, 4)] == [1, 1, 4]


def test_the_limits_of_tiles():
    assert (least := RatioSpec((1, 12), None)).faults(448, None) == []
    assert "0 to 12 tiles" in RatioSpec((0, 12), None).faults(448, None)[0]
    assert "4 to 3 tiles" in RatioSpec((4, 3), None).faults(448, None)[0]
    assert "1 to 19 tiles" in RatioSpec((1, 19), None).faults(448, None)[0]
    assert "448 for the longer edge" in least.faults(448, 448)[0]


@pytest.mark.parametrize("image", ["wide", "a view"])
@pytest.mark.parametrize("talk", TALKS)
def test_ids_are_those_of_the_processor(saved, spec, talk, image):
    """Of an image in tiles, and of one that is a single view."""
    picture, said = IMAGES[image][0], messages(*TALKS[talk])
    count = sum(e["type"] == "image" for message in said for e in message["content"])
    expected = saved().asked(said, [picture] * count)["input_ids"][0].tolist()
    found = views(picture, spec)
    assert (len(found.pixels) == 1) == (image == "a view")
    shown = Embeddings(np.zeros((len(found.pixels) * TOKENS, 64), np.float32), "it")
    asked = [said[0]["content"][0]["text"]] if said[0]["role"] == "system" else []
    turns = []
    for message in said[len(asked) :]:
        content = tuple(shown if e["type"] == "image" else e["text"] for e in message["content"])
        turns.append(Turn(content)) if message["role"] == "user" else turns.append(
            replace(turns.pop(), answer=content[0])
        )
    texts = tokenizer()
    mark, whole = texts.token_to_id("<IMG_CONTEXT>"), Tokenizer(tokenizers.Tokenizer.from_str(texts.to_str()))
    fed = segments(spec.prompt, whole, turns, *asked)
    assert [i for s in fed for i in (s.ids if isinstance(s, Tokens) else [mark] * len(s))] == expected


def test_the_spec(saved, spec):
    texts = tokenizer()
    before, behind = map(texts.token_to_id, ("<img>", "</img>"))
    image = spec.image
    assert (image.size, image.fit, image.long_edge, image.resample) == (SIDE, "stretch", None, "bicubic")
    assert (image.views, spec.most_views) == (RatioSpec((1, MOST), None), MOST + 1)
    assert spec.prompt.image == (Ids((before,)), Slot("image"), Ids((behind,)), Text("\n"))
    assert (spec.prompt.image_tokens, spec.prompt.image_question, spec.prompt.views) == (TOKENS, None, None)
    assert spec.prompt.end_ids == (texts.token_to_id(END),)
    found = open_checkpoint(str(saved().folder), context=100)
    assert found.spec.decoder.context == 100 and not found.notes
    named, _ = prompts.settle(found, "chatml")
    assert named.spec.prompt.image == (Ids((before,)), Slot("image"), Ids((behind,)))


def test_the_manifest_is_as_its_schema_has_it(bundle, spec):
    told = manifest_of(bundle)
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(told)
    assert told["image"]["views"] == {"tiles": [1, MOST], "image_tokens": None}
    assert VLMSpec.from_json(told) == spec
    assert told["prompt"]["golden"]["views"]["segments"].count(None) == 1
    told["image"]["views"]["tiles"] = [1, 1000]
    with pytest.raises(BundleError, match="1 to 1000 tiles, of which there may be 2 to 146"):
        VLMSpec.from_json(told)


def nearly_square():
    """One view; as of the other images that are asked about, no token of the answer is a near tie."""
    return np.random.default_rng(6).integers(0, 256, (60, 57, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", FORMATS)
def test_a_bundle_answers_as_transformers_does(saved, format, tmp_path, monkeypatch):
    """About tiles, and about one view."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    request = ExportRequest(str(saved().folder), tmp_path / "out", threads=1, **FORMATS[format])
    done = export(request, lambda *_: None)
    assert done.report.ok
    end = tokenizer().token_to_id(END)
    with load(done.path, threads=1) as session:
        for picture, count in ((IMAGES["wide"][0], 7), (IMAGES["large"][0], 7), (nearly_square(), 1)):
            told = saved().answer(saved().asked(messages((None, QUESTION)), [picture]), COUNT, end)
            session.ask(picture, QUESTION, max_tokens=COUNT)
            assert (list(session.last.token_ids), session.last.image_tokens) == (told, count * TOKENS)
            assert len(set(told)) > 4


def test_core_ml_answers_as_transformers_does(saved, tmp_path):
    request = ExportRequest(str(saved().folder), tmp_path / "out", threads=1, recipe="coreml-fp16")
    opened = Bundle.open(export(request, lambda *_: None).path)
    options, spec = OpenOptions(threads=1, context=512), opened.manifest.spec
    see, speak = (mil.evaluate(opened.files(part), options, "fp32") for part in opened.manifest.parts)
    picture = IMAGES["wide"][0]
    rows = [see.run({"pixel_values": pixels})["image_embeds"][0] for pixels in views(picture, spec).pixels]
    texts = Tokenizer.open(opened.file(opened.manifest.tokenizer))
    fed = segments(spec.prompt, texts, [Turn.about(QUESTION, [Embeddings(np.concatenate(rows), "it")])])
    logits, told = speak.extend(fed), []
    for _ in range(COUNT):
        told.append(int(logits.argmax()))
        logits = speak.extend([Tokens((told[-1],))])
    expected = saved().answer(saved().asked(messages((None, QUESTION)), [picture]), COUNT, tokenizer().token_to_id(END))
    assert told == expected


def test_a_budget_at_the_export_and_at_the_run(saved, bundle, tmp_path):
    wide = IMAGES["very wide"][0]  # as many tiles as there may be
    for budget, count in ((None, MOST + 1), (MOST * TOKENS, MOST), (2 * TOKENS, 1), (TOKENS, 1)):
        with load(bundle, threads=1, image_tokens=budget) as session:
            session.ask(wide, QUESTION, max_tokens=1)
            assert session.last.image_tokens == count * TOKENS
    with pytest.raises(UsageError, match="3 embeddings: one view of it gives 4"):
        load(bundle, image_tokens=TOKENS - 1)
    request = ExportRequest(str(saved().folder), tmp_path / "out", threads=1, image_tokens=17, **FORMATS["onnx"])
    small = Bundle.open(export(request, lambda *_: None).path)
    assert small.manifest.spec.image.views == RatioSpec((1, MOST), 17)
    assert small.manifest.spec.most_views == 4
    assert verify_against(small, str(saved().folder), None, 1).ok
    with load(small.path, threads=1) as session:
        session.ask(wide, QUESTION, max_tokens=1)
        assert session.last.image_tokens == 4 * TOKENS


def test_a_budget_of_less_than_three_views_is_one(saved, copy):
    found = open_checkpoint(str(saved().folder))
    spec = budgeted(found, 3 * TOKENS - 1).spec
    assert (spec.image.views, spec.most_views) == (None, 1)
    assert budgeted(found, 3 * TOKENS).spec.most_views == 3
    change(copy, "processor_config.json", image_processor={"min_patches": 3})
    assert budgeted(open_checkpoint(str(copy)), 4 * TOKENS - 1).spec.image.views is None
    assert budgeted(open_checkpoint(str(copy)), 4 * TOKENS).spec.most_views == 4


def test_one_tile_at_most_is_one_view(copy):
    change(copy, "processor_config.json", image_processor={"max_patches": 1})
    assert open_checkpoint(str(copy)).spec.image.views is None


def test_conversations_are_kept(bundle, tmp_path):
    with load(bundle, threads=1) as session:
        chat = session.chat(IMAGES["wide"][0])
        first = chat.ask(QUESTION, max_tokens=4)
        chat.save(tmp_path / "chat")
        second = chat.ask("Why?", max_tokens=4)
    with load(bundle, threads=1) as session:
        again = session.resume(tmp_path / "chat")
        assert again.turns[0].answer == first
        assert again.ask("Why?", max_tokens=4) == second
        assert session.last.cached_tokens > 3 * TOKENS


def test_defaults_are_those_of_transformers():
    from transformers import InternVLConfig
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    config = InternVLConfig()
    assert {name: getattr(config, name) for name in internvl.DEFAULTS} == internvl.DEFAULTS
    seen = config.vision_config
    for name, value in {**internvit.DEFAULTS, **internvit.FLAGS, **internvit.ALWAYS}.items():
        found = getattr(seen, name)
        assert (found[0] if isinstance(found, tuple) else found) == value
    assert seen.norm_type == internvit.NORMS[0]
    assert config.text_config.model_type == "qwen2"
    processor = GotOcr2ImageProcessorPil().to_dict()
    told = ("size", "resample", "image_mean", "image_std", "crop_to_patches", "min_patches", "max_patches")
    for name in told:
        found = processor[name]
        assert (tuple(found) if isinstance(found, list) else found) == ratio_preprocessor.DEFAULTS[name]


def test_what_published_files_hold_besides_changes_nothing(copy):
    """As InternVL3-1B's has it."""
    plain = open_checkpoint(str(copy)).spec
    seen = {"architectures": ["InternVisionModel"], "drop_path_rate": 0.0, "dropout": 0.0, "shift": None}
    change(copy, vision_config=seen, transformers_version="4.52.0.dev0")
    told = json.loads((copy / "processor_config.json").read_text())["image_processor"]
    change(copy, "processor_config.json", drop=("image_processor",))
    told |= {"image_processor_type": "GotOcr2ImageProcessorFast", "processor_class": "InternVLProcessor"}
    told |= {"data_format": "channels_first", "do_center_crop": None, "crop_size": None, "default_to_square": True}
    change(copy, "preprocessor_config.json", **told, device=None, input_data_format=None, return_tensors=None)
    assert open_checkpoint(str(copy)).spec == plain


CONFIG = {
    "no vision_config": ({"vision_config": 7}, "vision_config 7"),
    "another decoder": ({"text_config": {"model_type": "mamba"}}, "'mamba'"),
    "another vision encoder": ({"vision_config": {"model_type": "vit"}}, "'vit'"),
    "a factor": ({"downsample_ratio": 0.3}, "downsample_ratio is 0.3"),
    "a class token": ({"vision_feature_select_strategy": "full"}, "select_strategy is 'full'"),
    "several layers": ({"vision_feature_layer": [-1, -2]}, r"vision_feature_layer is \[-1, -2\]"),
    "no such layer": ({"vision_feature_layer": 9}, "vision_feature_layer is 9, of 3 layers"),
    "no square": ({"vision_config": {"image_size": [56, 28]}}, r"image_size is \[56, 28\]"),
    "a size": ({"vision_config": {"image_size": 84}}, "do not fit|image_seq_length"),
    "no positions": ({"vision_config": {"use_absolute_position_embeddings": False}}, "position_embeddings is False"),
    "a last norm": ({"vision_config": {"use_mean_pooling": False}}, "use_mean_pooling is False"),
    "a norm": ({"vision_config": {"norm_type": "batch_norm"}}, "norm_type is 'batch_norm'"),
    "norms of queries": ({"vision_config": {"use_qk_norm": "yes"}}, "use_qk_norm is 'yes'"),
    "missing norms": ({"vision_config": {"use_qk_norm": True}}, "missing: .*q_norm.weight"),
    "an activation": ({"vision_config": {"hidden_act": "relu"}}, "hidden_act is 'relu'"),
    "rows": ({"image_seq_length": 7}, "image_seq_length 7, and a view gives 4"),
    "an image token": ({"image_token_id": 7}, "image_token_id is 7, and the tokenizer's '<IMG_CONTEXT>'"),
    "tied": ({"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'"),
    "unknown": ({"image_newline": True}, "image_newline True, which InternVL"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised already"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_configs_that_are_refused(copy, case):
    said, match = CONFIG[case]
    refused(change(copy, **said), f"(?s){match}")


PROCESSOR = {
    "another view": ({"size": {"height": 60, "width": 60}}, "size .*60.*: not 56"),
    "one edge": ({"size": {"shortest_edge": SIDE}}, "do_center_crop|size"),
    "no number": ({"max_patches": "12"}, "max_patches '12': not a number of tiles"),
    "none": ({"min_patches": 0}, "min_patches 0: not a number"),
    "too many": ({"max_patches": 200}, "max_patches 200: an image has views of 1 to 200 tiles"),
    "fewer than the fewest": ({"min_patches": 7}, "views of 7 to 6 tiles"),
    "another class": ({"image_processor_type": "CLIPImageProcessor"}, "'CLIPImageProcessor': another processor"),
    "unknown": ({"use_thumbnail": True}, "use_thumbnail True"),
}


@pytest.mark.parametrize("case", PROCESSOR)
def test_processors_that_are_refused(copy, case):
    said, match = PROCESSOR[case]
    path = copy / "processor_config.json"
    told = json.loads(path.read_text())
    told["image_processor"] |= said
    path.write_text(json.dumps(told))
    refused(copy, match)


@pytest.mark.parametrize("name", made.MARKS.values())
def test_a_tokenizer_that_lacks_a_token(copy, name):
    for path in copy.glob("tokenizer.json"):
        path.write_text(path.read_text().replace(f'"{name}"', '"<another>"'))
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({"eos_token": END, "tokenizer_class": "Qwen2Tokenizer"}))
    refused(copy, f"no special token '{name}'")


def test_weights_that_do_not_fit_are_listed(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    gone = "vision_tower.encoder.layer.1.lambda_2"
    save_file({name: t for name, t in tensors.items() if name != gone}, path)
    refused(copy, f"missing: {gone}")
    save_file({**tensors, "vision_tower.layernorm.weight": torch.ones(1)}, path)
    refused(copy, r"does not use:\n  vision_tower.layernorm.weight")


def test_options_that_do_not_go_with_it(copy, tmp_path):
    refused(copy, "--vision-tower does not go", UsageError, vision_tower=tmp_path)
    refused(copy, "--mmproj goes with", UsageError, mmproj=tmp_path / "mmproj.gguf")


def test_an_mmproj_is_refused_by_name(saved, tmp_path):
    request = ExportRequest(str(saved().folder), tmp_path / "out", threads=1, format="gguf", schemes=("f16",))
    with pytest.raises(Exception, match="internvit vision encoder is not written") as caught:
        export(request, lambda *_: None)
    assert "--recipe" in caught.value.hint
