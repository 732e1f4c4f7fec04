"""SmolVLM, SmolVLM2 and Idefics3, each image as one view: what transformers' own classes make of them, or refused.
`test_views.py` has their tiles."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import smolvlm as made
import tokenizers
import torch
from chat_templates import CHATML, SMOLVLM
from evaluated import answered
from safetensors.torch import load_file, save_file
from smolvlm import END, LONG, ROWS, SIDE, TOKENS, change
from test_gguf_bpe import trained
from variants import Variants, refused

from edge.errors import CheckpointError, UsageError
from edge.inference.session import load
from edge.inputs.image import pixels
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.spec.pieces import Ids, Slot, Text
from edge.types import Embeddings, Tokens
from exporters.checkpoints import idefics3
from exporters.export import ExportRequest, export
from exporters.models import projectors
from exporters.models.attention import GrowingCache
from exporters.models.projectors import ProjectorConfig
from exporters.sources import prompts
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.split_preprocessor import DEFAULTS

QUESTION, COUNT = "What is in this picture?", 32
VARIANTS = {
    "SmolVLM": {},
    "Idefics3": {"family": "Idefics3"},
    "tied": {"tie_word_embeddings": True},
    "patches by four": {"scale_factor": 4},
    "Qwen2": {"text": {"model_type": "qwen2"}},
}


def tokenizer():
    return trained("smollm", ROWS, made.SPECIAL)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("smolvlm")
    return Variants(
        root, "SmolVLM", lambda folder, variant, **more: made.save(folder, tokenizer(), **VARIANTS[variant], **more)
    )


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved().folder, tmp_path / "copy")


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_saved_model_is_the_same_model(saved, variant):
    """The embeddings of an image, and the logits of text."""
    folder, model, _ = saved(variant)
    found = open_checkpoint(str(folder))
    parts = {role: c.load(found.weights) for role, c in found.components.items()}
    values = torch.randn(1, 3, SIDE, SIDE)
    expected = model.get_image_features(values[None]).pooler_output[0]
    torch.testing.assert_close(parts["projector"](parts["vision"](values))[0], expected, rtol=1e-4, atol=1e-5)
    assert found.spec.prompt.image_tokens == len(expected) == 64 // VARIANTS[variant].get("scale_factor", 2) ** 2
    ids, decoder = torch.tensor([[1, 5, 9, 300, 17]]), parts["decoder"]
    cache = GrowingCache(decoder.config.heads, decoder.config.kv_heads, decoder.config.rope)
    logits = decoder(decoder.embed_tokens(ids), cache, everywhere=True)
    torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_pixel_shuffle_by_hand():
    """Of 4 x 4 patches of two channels, each numbered: what lies in a square becomes one row, row after row."""
    module, _ = projectors.find("pixel_shuffle")
    projector = module.Projector(module.from_config(ProjectorConfig(2, 8, grid=4), {"scale_factor": 2}))
    projector.proj.weight.data = torch.eye(8)
    found = projector(torch.arange(32.0).view(1, 16, 2))[0].int().tolist()
    corners = [0, 2, 8, 10]  # the upper left patch of each square
    assert found == [[2 * (c + n) + k for n in (0, 1, 4, 5) for k in (0, 1)] for c in corners]


@pytest.mark.parametrize("name", made.awkward())
def test_pixels_are_those_of_the_processor(saved, name):
    folder = saved().folder
    given, theirs = made.awkward()[name]
    found = pixels(given, open_checkpoint(str(folder)).spec.image)
    assert found.shape == (1, 3, SIDE, SIDE)
    assert np.abs(found - saved().pixels(theirs)).max() < 1e-6


def test_without_a_first_resize_an_image_is_stretched(saved, copy):
    processor = saved().processor.image_processor
    change(copy, "processor_config.json", image_processor={"do_resize": False})
    spec = open_checkpoint(str(copy)).spec.image
    assert (spec.fit, spec.long_edge, spec.resample) == ("stretch", None, "lanczos")
    image = made.awkward()["wide"][0]
    expected = processor(image, do_resize=False, return_tensors="np")["pixel_values"][0]
    assert np.abs(pixels(image, spec) - expected).max() < 1e-6


def messages(*said):
    """Roles in turn, a system message first where it begins with "system: "; an image where None stands."""
    found = []
    for content in said:
        entries = content if isinstance(content, tuple) else (content,)
        role = "system" if str(entries[0]).startswith("system: ") else "assistant" if len(found) % 2 else "user"
        if found and found[0]["role"] == "system":
            role = "user" if len(found) % 2 else "assistant"
        texts = [{"type": "image"} if e is None else {"type": "text", "text": e} for e in entries]
        found.append({"role": role, "content": texts})
    return found


IMAGE = Embeddings(np.zeros((TOKENS, 64), np.float32), "any")
TALKS = {
    "a text": ("Who is she?",),
    "an image": ((None, QUESTION),),
    "two images": ((None, None, "Which is larger?"),),
    "several turns": ((None, "What?"), "A cat.", "Why?", " Because \n", "Größe: 3 ≠ 42\n\n- x"),
    "an image later": ("Hello.", "Hi.", (None, "And this?")),
    "images in each turn": ((None, "One?"), "Yes.", (None, None, "Two?"), "No.", (None, "Three?")),
    "a system message": ("system: Be brief.", (None, QUESTION)),
    "a system message, several turns": ("system:  In 2 lines\n", "Who?", "She.", (None, "Sure?")),
    "a text before its image": (("Look: ", None),),
    "texts among images": (("First", None, "\nthen ", None, " – alike?"), "No.", ("And", None)),
}


def our_ids(prompt, texts, talk):
    """As the bundle feeds them, an image as so many marks."""
    mark = texts.token_to_id("<image>")
    asked = [talk[0]["content"][0]["text"]] if talk[0]["role"] == "system" else []
    turns = []
    for message in talk[len(asked) :]:
        content = tuple(IMAGE if e["type"] == "image" else e["text"] for e in message["content"])
        if message["role"] == "user":
            turns.append(Turn(content))
        else:
            turns[-1] = replace(turns[-1], answer=content[0])
    fed = segments(prompt, Tokenizer(tokenizers.Tokenizer.from_str(texts.to_str())), turns, *asked)
    return [i for part in fed for i in (part.ids if isinstance(part, Tokens) else [mark] * TOKENS)]


@pytest.fixture(scope="module")
def prompt(saved):
    return prompts.settle(open_checkpoint(str(saved().folder)), None)[0].spec.prompt


@pytest.mark.parametrize("talk", TALKS)
def test_ids_are_those_of_the_processor(saved, prompt, talk):
    said = messages(*TALKS[talk])
    count = sum(e["type"] == "image" for message in said for e in message["content"])
    expected = saved().asked(said, [made.awkward()["wide"][0]] * count)["input_ids"][0].tolist()
    assert our_ids(prompt, tokenizer(), said) == expected


def test_a_text_that_spells_special_tokens_is_text(saved, prompt):
    texts, special = tokenizer(), {tokenizer().token_to_id(name) for name in made.SPECIAL}
    plain, hostile = messages((None, "Who?"), "She.", "Why?"), "".join(made.SPECIAL)
    found = our_ids(prompt, texts, messages((None, hostile), f"a{END}b", f"<image>{hostile}"))
    wanted = our_ids(prompt, texts, plain)
    assert [i for i in found if i in special] == [i for i in wanted if i in special]
    assert texts.decode([i for i in found if i not in special]).count(hostile) == 2


def test_the_spec(saved, prompt):
    found = open_checkpoint(str(saved().folder))
    image, texts = found.spec.image, tokenizer()
    around, overview = map(texts.token_to_id, ("<fake_token_around_image>", "<global-img>"))
    assert (image.size, image.fit, image.long_edge, image.resample) == (SIDE, "long_edge", LONG, "lanczos")
    assert (image.mean, image.std) == ((0.5,) * 3, (0.5,) * 3)
    assert prompt.image == (Ids((around,)), Ids((overview,)), Slot("image"), Ids((around,)))
    assert (prompt.image_tokens, prompt.image_question_when) == (TOKENS, "first")
    assert prompt.bos_id == texts.token_to_id(made.BOS) and prompt.end_ids == (texts.token_to_id(END),)
    assert prompt.questions(image=True).first[0] == Text("User:")
    assert not found.notes
    assert open_checkpoint(str(found.folder), context=100).spec.decoder.context == 100


def test_images_that_would_be_split_as_large_as_they_are_are_told(copy):
    plain = open_checkpoint(str(copy)).spec
    change(copy, "processor_config.json", image_processor={"do_image_splitting": True, "do_resize": False})
    found = open_checkpoint(str(copy))
    assert any("splits images that it does not resize" in note for note in found.notes)
    assert found.spec.image == replace(plain.image, fit="stretch", long_edge=None)


def test_defaults_are_those_of_transformers():
    from transformers import Idefics3Config, SmolVLMConfig
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    for config in (Idefics3Config(), SmolVLMConfig()):
        assert {name: getattr(config, name) for name in idefics3.DEFAULTS} == idefics3.DEFAULTS
        assert {name: getattr(config.vision_config, name) for name in idefics3.SEEN} == idefics3.SEEN
    processor = Idefics3ImageProcessorPil().to_dict()
    told = {name: value for name, value in DEFAULTS.items() if name != "data_format"}
    assert {name: processor[name] for name in told} == told


@pytest.mark.parametrize("name", ["tie_word_embeddings", "scale_factor"])
def test_what_a_config_leaves_out_is_the_default(copy, name):
    plain, found = open_checkpoint(str(copy)), open_checkpoint(str(change(copy, drop=(name,))))
    assert found.spec == plain.spec
    assert all(found.components[role].keys == component.keys for role, component in plain.components.items())


def test_what_published_files_hold_besides_changes_nothing(copy):
    """As SmolVLM's of 256M and 500M have it."""
    plain = open_checkpoint(str(copy)).spec
    text = {"pixel_shuffle_factor": 2, "qk_layer_norms": False, "use_resampler": False, "rope_interleaved": False}
    text |= {"is_llama_config": True, "perceiver_config": {"attention_dropout": 0.0}, "neftune_noise_alpha": 0.0}
    seen = {"model_type": "siglip_vision_model", "size": {"longest_edge": 2048}, "use_base_siglip": True}
    seen |= {"max_image_size": {"longest_edge": SIDE}, "tie_word_embeddings": False}
    change(copy, text_config=text, vision_config=seen, use_reentrant_checkpointing=False, vocab_size=ROWS)
    change(copy, "processor_config.json", drop=("image_processor",))
    told = {"image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor", "do_pad": True}
    told |= {"max_image_size": {"longest_edge": SIDE}, "size": {"longest_edge": LONG}, "do_image_splitting": False}
    told |= {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}, "resample": 1}
    change(copy, "preprocessor_config.json", do_convert_rgb=True, **told)
    assert open_checkpoint(str(copy)).spec == plain


def test_the_processor_s_template_goes_before_the_language_model_s(copy):
    (copy / "chat_template.jinja").unlink()
    change(copy, "chat_template.json", chat_template=SMOLVLM)
    change(copy, "tokenizer_config.json", chat_template=CHATML)
    assert list(open_checkpoint(str(copy)).templates) == ["chat_template.json"]
    (copy / "chat_template.json").unlink()
    assert list(open_checkpoint(str(copy)).templates) == ["tokenizer_config.json"]


DOCLING = (  # as granite-docling's, which has Idefics3's layout
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '<|im_end|>' -}}{%- if m['content'] is string -%}"
    "{{- m['content'] + '<end_of_utterance>\n' -}}{%- else -%}{%- for part in m['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- elif part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- endif -%}{%- endfor -%}{{- '<end_of_utterance>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|im_end|>' -}}{%- endif -%}"
)


def test_a_template_that_takes_plain_texts_too_is_the_same_prompt(copy, prompt):
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

    (copy / "chat_template.jinja").write_text(DEFAULT_CHAT_TEMPLATE)
    assert prompts.settle(open_checkpoint(str(copy)), None)[0].spec.prompt == prompt


@pytest.mark.parametrize("talk", TALKS)
def test_ids_of_another_template(saved, copy, talk):
    (copy / "chat_template.jinja").write_text(DOCLING)
    spec = prompts.settle(open_checkpoint(str(copy)), None)[0].spec.prompt
    assert spec.image_question is None and len(spec.image) == 4
    said, kept = messages(*TALKS[talk]), saved()
    count = sum(e["type"] == "image" for message in said for e in message["content"])
    text = kept.processor.apply_chat_template(said, chat_template=DOCLING, add_generation_prompt=True)
    images = [made.awkward()["wide"][0]] * count
    expected = kept.processor(text=text, images=images or None, add_special_tokens=False)["input_ids"][0]
    assert our_ids(spec, tokenizer(), said) == list(expected)


def test_without_a_template_no_prompt_is_assumed(copy):
    (copy / "chat_template.jinja").unlink()
    found = open_checkpoint(str(copy))
    with pytest.raises(CheckpointError, match="no chat template") as caught:
        prompts.settle(found, None)
    assert "--prompt" in caught.value.hint
    asked, _ = prompts.settle(found, "chatml")
    assert len(asked.spec.prompt.image) == 4 and asked.spec.prompt.image_question is None


CONFIG = {
    "no text_config": ({"text_config": None}, "text_config None"),
    "no vision_config": ({"vision_config": 7}, "vision_config 7"),
    "another decoder": ({"text_config": {"model_type": "mamba"}}, "'mamba'"),
    "another vision encoder": ({"vision_config": {"model_type": "clip_vision_model"}}, "'clip_vision_model'"),
    "a factor": ({"scale_factor": 3}, "scale_factor is 3, and an image has 8 x 8 patches"),
    "a factor that is no number": ({"scale_factor": "2"}, "scale_factor is '2'"),
    "two factors": ({"text_config": {"pixel_shuffle_factor": 4}}, "pixel_shuffle_factor 4"),
    "a resampler": ({"text_config": {"use_resampler": True}}, "use_resampler True"),
    "norms of heads": ({"text_config": {"qk_layer_norms": True}}, "qk_layer_norms True"),
    "rotation": ({"text_config": {"rope_interleaved": True}}, "rope_interleaved True"),
    "a size": ({"vision_config": {"image_size": [48, 48]}}, r"image_size is \[48, 48\]"),
    "another grid": ({"vision_config": {"image_size": 60}}, "max_image_size|do not fit|divides"),
    "positions": ({"vision_config": {"image_size": 150}}, "25 patches a side, of which"),
    "an activation": ({"vision_config": {"hidden_act": "relu"}}, "hidden_act is 'relu'"),
    "an image token": ({"image_token_id": 7}, "image_token_id is 7, and the tokenizer's '<image>'"),
    "no image token": ({"image_token_id": None}, "image_token_id is None"),
    "tied": ({"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'"),
    "unknown": ({"image_newline": True}, "image_newline True, which Idefics3"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised already"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_configs_that_are_refused(copy, case):
    said, match = CONFIG[case]
    refused(change(copy, **said), f"(?s){match}")


PROCESSOR = {
    "another view": ({"max_image_size": {"longest_edge": 60}}, "max_image_size .*60.*: not 48"),
    "two edges": ({"size": {"height": 48, "width": 48}}, "size .*no length of the longer edge"),
    "too long": ({"size": {"longest_edge": 5000}}, "size .*5000.*: no length"),
    "no number": ({"size": {"longest_edge": "144"}}, "size .*'144'"),
    "a filter": ({"resample": 0}, "resample 0"),
    "splitting": ({"do_image_splitting": "no"}, "do_image_splitting 'no': neither"),
    "another class": ({"image_processor_type": "CLIPImageProcessor"}, "'CLIPImageProcessor': another processor"),
    "unknown": ({"tile_size": 512}, "tile_size 512"),
}


@pytest.mark.parametrize("case", PROCESSOR)
def test_processors_that_are_refused(copy, case):
    said, match = PROCESSOR[case]
    path = copy / "processor_config.json"
    told = json.loads(path.read_text())
    told["image_processor"] |= said
    path.write_text(json.dumps(told))
    refused(copy, match)


def test_a_processor_of_another_model(copy):
    refused(change(copy, "processor_config.json", image_seq_len=169), "image_seq_len 169, and an image gives 16")


@pytest.mark.parametrize("name", ["<image>", "<fake_token_around_image>"])
def test_a_tokenizer_that_lacks_a_token(copy, name):
    for path in copy.glob("*tok*.json"):
        path.write_text(path.read_text().replace(f'"{name}"', '"<another>"'))
    refused(copy, f"no special token '{name}'")


def test_weights_that_do_not_fit_are_listed(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    gone = "model.connector.modality_projection.proj.weight"
    save_file({name: t for name, t in tensors.items() if name != gone}, path)
    refused(copy, f"missing: {gone}")
    save_file({**tensors, "model.perceiver.latents": torch.ones(1)}, path)
    refused(copy, r"does not use:\n  model.perceiver.latents")


def test_options_that_do_not_go_with_it(copy, tmp_path):
    refused(copy, "--vision-tower does not go", UsageError, vision_tower=tmp_path)
    refused(copy, "--mmproj goes with", UsageError, mmproj=tmp_path / "mmproj.gguf")


# In every format: 32 greedy tokens after an image and a question.


def picture():
    return np.random.default_rng(5).integers(0, 256, (40, 61, 3), dtype=np.uint8)


def expected(saved, variant, question=QUESTION):
    kept = saved(variant)
    given = kept.asked(messages((None, question)), [picture()])
    return kept.answer(given, COUNT, tokenizer().token_to_id(END))


FORMATS = {
    "onnx": {"schemes": ("fp32",)},
    "tflite": {"format": "tflite", "schemes": ("fp32",)},
    "executorch": {"format": "executorch", "schemes": ("fp32",)},
    "gguf": {"recipe": "onnx-w8a8-gguf-q4_0", "schemes": ("vision=fp32", "decoder=f16")},
}
ANSWERED = [("SmolVLM", name) for name in FORMATS] + [("Idefics3", "gguf")]


@pytest.mark.parametrize(("variant", "format"), ANSWERED)
def test_a_bundle_answers_as_transformers_does(saved, variant, format, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    request = ExportRequest(str(saved(variant).folder), tmp_path / "out", threads=1, **FORMATS[format])
    done = export(request, lambda *_: None)
    assert done.report.ok
    told = expected(saved, variant)
    assert len(told) == COUNT and len(set(told)) > 4
    with load(done.path, threads=1) as session:
        session.ask(picture(), QUESTION, max_tokens=COUNT)
        assert list(session.last.token_ids) == told


def test_core_ml_answers_as_transformers_does(saved, tmp_path):
    request = ExportRequest(str(saved().folder), tmp_path / "out", threads=1, recipe="coreml-fp16")
    done = export(request, lambda *_: None)
    assert answered(done.path, picture(), QUESTION, COUNT) == expected(saved, "SmolVLM")
