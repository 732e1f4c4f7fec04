"""Which prompt an export writes: asked for, rendered by the checkpoint's own template, or published with its family."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
from chat_templates import CHATML, LLAMA_2, OWN, VICUNA
from commands import call
from exported import Exports, manifest_of
from small_models import write

import edge
from edge.bundle.manifest import Bundle
from edge.errors import CheckpointError, EdgeError, UsageError
from edge.formats import gguf
from edge.inputs.prompt import Turn, parts
from edge.spec import PromptSpec
from edge.spec.pieces import Ids, Questions, Slot, Text
from edge.types import Embeddings
from exporters import pipeline
from exporters.formats import gguf as format
from exporters.gguf import rendering
from exporters.gguf.fault import Change
from exporters.gguf.names import TEMPLATE
from exporters.gguf.rewrite import rewrite
from exporters.sources import prompts
from exporters.sources.checkpoint import Checkpoint, open_checkpoint
from exporters.sources.published import PROMPTS, SYSTEM
from exporters.sources.published_templates import SPECIAL, TEMPLATES
from exporters.verify_checkpoint import verify_against

HUMAN = SYSTEM.replace("user", "human")
LLAVA_V1 = VICUNA["terse"].replace("curious user", "curious human").replace("the user\\'s", "the human\\'s")
OTHER = VICUNA["typed entries"]  # the same once more
QUESTION = {
    "first": [{"text": "### User: "}, {"slot": "content", "trim": "none"}, {"text": "\n"}],
    "after_system": None,
    "later": [{"text": "USER: "}, {"slot": "content", "trim": "none"}, {"text": " "}],
}
OWN_FILE = {
    "question": QUESTION,
    "image": [{"slot": "image", "trim": "none"}],
    "answer": [{"text": "### Assistant: "}, {"slot": "answer", "trim": "both"}, {"ids": [7]}],
    "generation": [{"text": "### Assistant:"}],
    "default_system": "",
    "stop_strings": ["###"],
}
OLD_FILE = {
    "system": "### System: {text}\n",
    "user": "### User: {text}\n",
    "assistant": "### Assistant: {text}",
    "generation": "### Assistant:",
    "image": "<image>",
    "default_system": "",
    "stop_strings": ["###"],
}


class Folder:
    """A checkpoint's folder that a test may write into; the weights are shared."""

    def __init__(self, source: Path, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        for file in source.iterdir():
            (path / file.name).symlink_to(file) if file.suffix == ".safetensors" else shutil.copy(file, path)

    def json(self, file: str, **values: Any) -> Folder:
        path = self.path / file
        told = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(told | values))
        return self

    def text(self, file: str, content: str) -> Folder:
        (self.path / file).parent.mkdir(exist_ok=True)
        (self.path / file).write_text(content)
        return self

    def open(self) -> Checkpoint:
        return open_checkpoint(str(self.path))

    def settled(self, asked: str | None = None) -> tuple[PromptSpec, str | None]:
        found, note = prompts.settle(self.open(), asked)
        return found.spec.prompt, note


@pytest.fixture
def folder(exports: Exports, tmp_path: Path) -> Folder:
    return Folder(exports.checkpoint(), tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("asked", "templates", "said"),
    [
        ("chatml", {}, "--prompt chatml"),
        ("chatml", {"chat_template.jinja": "…"}, "--prompt chatml"),
        (None, {"chat_template.jinja": "…", "tokenizer_config.json": "…"}, "the chat template in chat_template.jinja"),
        (None, {}, "the one that its family learned"),
    ],
)
def test_an_export_says_where_its_prompt_is_from(asked, templates, said):
    assert prompts.origin(SimpleNamespace(templates=templates), asked).startswith(said)


def test_a_published_family_without_a_template(folder: Folder) -> None:
    for name in ("mtgv/MobileVLM_V2-1.7B", "meta-llama/Llama-2-7b-chat-hf"):  # whatever it was trained from
        assert folder.json("config.json", _name_or_path=name).settled() == (folder.open().spec.prompt, None)
    assert folder.open().spec.prompt.default_system == SYSTEM


@pytest.mark.parametrize("text", VICUNA.values(), ids=VICUNA.keys())
def test_a_template_that_renders_the_published_prompt(folder: Folder, text: str) -> None:
    folder.json("config.json", model_type="llava_llama").json("tokenizer_config.json", chat_template=text)
    assert folder.settled() == (folder.open().spec.prompt, None)


def test_a_template_of_another_published_prompt(folder: Folder) -> None:
    prompt, note = folder.text("chat_template.jinja", LLAVA_V1).settled()
    assert (prompt.default_system, note) == (HUMAN, None)
    assert prompt == dataclasses.replace(folder.open().spec.prompt, default_system=HUMAN)


def rendered(checkpoint: Checkpoint) -> str:
    """Conversations as its prompt feeds them, spelled out."""
    spec, texts = checkpoint.spec.prompt, tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json())
    image = Embeddings(np.zeros((1, 1), np.float32), "image")
    talks = [
        ([Turn.about("What is this?", [image], "A cat."), Turn.about("Why?")], None),
        ([Turn.about("?")], "Brief."),
    ]
    found = [
        part
        for turns, system in talks
        if system is None or spec.question.after_system is not None
        for part in parts(spec, turns, system)
    ]
    spelled = (texts.id_to_token(p) if isinstance(p, int) else p if isinstance(p, str) else "<image>" for p in found)
    return "".join(spelled)


OWN_KINDS = {name: told for name, told in OWN.items() if name != "a picture after its question"}


@pytest.mark.parametrize(("text", "said"), OWN_KINDS.values(), ids=OWN_KINDS.keys())
@pytest.mark.parametrize("model_type", ["mobilevlm", "llava_llama"])
def test_a_template_of_its_own_is_taken(folder: Folder, text: str, said: str, model_type: str) -> None:
    folder.json("config.json", model_type=model_type).json("tokenizer_config.json", chat_template=text)
    found, note = prompts.settle(folder.open(), None)
    assert said in rendered(found) and note is None
    for name, system in PROMPTS.items():
        assert folder.settled(name)[0].default_system == system


def test_a_template_that_is_no_pieces_is_refused(folder: Folder) -> None:
    folder.text("chat_template.jinja", OWN["a picture after its question"][0])
    with pytest.raises(CheckpointError, match="chat template of its own") as caught:
        folder.settled()
    assert "chat_template.jinja writes an image after its question" in caught.value.message
    assert all(word in str(caught.value.hint) for word in ("--prompt", *prompts.NAMES, "FILE"))


def test_a_template_that_writes_the_date(folder: Folder) -> None:
    day = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {% endif %}"
    found, note = folder.text("chat_template.jinja", day + CHATML).settled()
    assert Text("26 Jul 2024 <|im_start|>user\n") in found.question.first
    assert "chat_template.jinja" in str(note) and "2024-07-26" in str(note)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_by_name(folder: Folder, name: str) -> None:
    """Refused where the tokenizer lacks its special tokens: it would be spelled out."""
    if name in SPECIAL:
        with pytest.raises(UsageError, match="which this tokenizer lacks") as caught:
            folder.settled(name)
        assert repr(SPECIAL[name][0]) in caught.value.message
        size = folder.open().spec.decoder.vocab
        added = [{"id": size - 1 - n, "content": token, "special": True} for n, token in enumerate(SPECIAL[name])]
        listed = {str(token["id"]): {"content": token["content"], "special": True} for token in added}
        folder.json("tokenizer_config.json", added_tokens_decoder=listed)
    found, note = folder.settled(name)
    texts = [piece.text for pieces in found.pieces() for piece in pieces if isinstance(piece, Text)]
    assert note is None and not any(token in text for token in SPECIAL.get(name, ()) for text in texts)
    assert set(found.end_ids) <= set(found.stop_ids)


def test_a_file_with_a_template(folder: Folder) -> None:
    path = folder.path.parent / "own.jinja"
    path.write_text(LLAMA_2)
    prompt, note = folder.settled(str(path))
    assert (note, prompt.end_ids, prompt.question.first[-1]) == (None, (2,), Slot("content", "both"))
    for content, said in ((b"{{ 1 }}", "leaves out a question"), (b"\xff\xfe", "is no chat template")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said) as caught:
            folder.settled(str(path))
        assert "own.jinja" in caught.value.message and caught.value.hint
    path.unlink()
    with pytest.raises(UsageError, match="is no chat template"):
        folder.settled(str(path))


PLACES = {
    "tokenizer_config.json": lambda folder, text: folder.json("tokenizer_config.json", chat_template=text),
    "chat_template.jinja": lambda folder, text: folder.text("chat_template.jinja", text),
    "chat_template.json": lambda folder, text: folder.json("chat_template.json", chat_template=text),
    "processor_config.json": lambda folder, text: folder.json("processor_config.json", chat_template=text),
    "additional_chat_templates": lambda folder, text: folder.text("additional_chat_templates/x.jinja", text),
}


BESIDE = [*PLACES][1:] + [*PLACES][:1]  # the last is beside the first


@pytest.mark.parametrize(
    ("own", "known"),
    [
        *zip(PLACES, PLACES, strict=True),
        *zip(PLACES, BESIDE, strict=True),
        *zip(BESIDE, PLACES, strict=True),
        ("additional_chat_templates", "chat_template.jinja"),
        ("chat_template.jinja", "additional_chat_templates"),
    ],
)
def test_places_that_contradict_each_other(folder: Folder, own: str, known: str) -> None:
    """Each place with itself and two others, and the two of which one is the default."""
    if own == known:
        before = folder.open().sha256
        PLACES[own](folder, CHATML)
        assert folder.open().sha256 != before  # they are a part of the checkpoint
    else:
        PLACES[known](folder, VICUNA["terse"])
        folder.settled()
        PLACES[own](folder, CHATML)
    if (known, own) == ("chat_template.jinja", "additional_chat_templates"):
        assert folder.settled()[1] is None  # it is the default, and the others are for tools
        return
    if own == known or (known, own) == ("additional_chat_templates", "chat_template.jinja"):
        assert "<|im_start|>user" in rendered(prompts.settle(folder.open(), None)[0])
        return
    with pytest.raises(CheckpointError, match="which disagree") as caught:
        folder.settled()
    lines = {line.split()[0].split("/")[0]: line for line in caught.value.message.splitlines()[1:]}
    assert "<|im_start|>" in lines[own] and lines[known].endswith("renders vicuna")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "TemplateError: no"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "ends the process"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "cannot be rendered"),
        ("{{ 'a' * 10**11 }}", "MemoryError"),
        ("{{ 'a' * 10**8 }}", "cannot be rendered|leaves out a question"),
    ],
)
def test_a_template_that_renders_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setattr(rendering, "_SECONDS", 1)
    folder.text("chat_template.jinja", text)
    with pytest.raises(CheckpointError, match=said) as caught:
        folder.settled()
    assert len(str(caught.value)) < 1000
    assert folder.settled("vicuna") == (folder.open().spec.prompt, None)


def test_without_jinja2(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "find_spec", lambda name: None)
    assert folder.settled()[1] is None
    with pytest.raises(CheckpointError, match="jinja2 is not installed") as caught:
        folder.text("chat_template.jinja", VICUNA["terse"] + "{# not seen before #}").settled()
    assert "pip install jinja2" in str(caught.value.hint)


# Without a template


@pytest.mark.parametrize(
    ("config", "system"),
    [
        ({"_name_or_path": "lmsys/vicuna-7b-v1.5"}, SYSTEM),
        ({"_name_or_path": "./checkpoints/llava-v1.5-7b"}, SYSTEM),
        ({"conv_mode": "vicuna_v1"}, SYSTEM),
        ({"conv_mode": "llava_v1", "_name_or_path": "x"}, HUMAN),
        ({"conv_version": "v1", "_name_or_path": "meta-llama/Llama-2-7b-hf"}, SYSTEM),
        ({"version": "v1"}, SYSTEM),
    ],
)
def test_what_names_a_published_prompt(folder: Folder, config: dict[str, str], system: str) -> None:
    prompt, note = folder.json("config.json", model_type="llava_llama", **config).settled()
    assert (prompt.default_system, note) == (system, None)


@pytest.mark.parametrize(
    ("config", "conversation"),
    [
        ({"_name_or_path": "meta-llama/Llama-2-13b-chat-hf"}, "llava_llama_2"),
        ({"_name_or_path": "liuhaotian/llava-llama-2-13b-chat-lightning-preview"}, "llava_llama_2"),
        ({"_name_or_path": "/data/models/Meta-Llama-3-8B-Instruct"}, "llava_llama_3"),
        ({"_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2"}, "mistral_instruct"),
        ({"_name_or_path": "liuhaotian/llava-v1.6-34b"}, "chatml_direct"),
        ({"_name_or_path": "liuhaotian/LLaVA-Lightning-MPT-7B-preview"}, "mpt"),
        ({"_name_or_path": "liuhaotian/LLaVA-7b-v0"}, "llava_v0"),
        ({"conv_mode": "llava_llama_2"}, "llava_llama_2"),
        ({"conv_mode": "house_style"}, "house_style"),
        ({"conv_version": 2}, "2"),
        ({"version": "plain"}, "plain"),
    ],
)
def test_what_names_another_prompt(folder: Folder, config: dict[str, Any], conversation: str) -> None:
    folder.json("config.json", model_type="llava_llama", **config)
    (key,) = config
    with pytest.raises(CheckpointError, match=f"{key} is .*{conversation}") as caught:
        folder.settled()
    assert "--prompt" in str(caught.value.hint)
    assert folder.settled("vicuna") == (folder.open().spec.prompt, None)


def test_the_name_of_the_folder_counts_as_upstream(exports: Exports, tmp_path: Path) -> None:
    for name, taken in (
        ("llava-llama-2-7b", False),
        ("llava-v1.5-7b-mine", True),
        ("llama-2/llava-v1.5", True),
        ("llava-llama-2-7b-mine/checkpoint-500", False),
        ("llava-v1.5-7b-again/checkpoint-500", True),
    ):
        made = Folder(exports.checkpoint(), tmp_path / name).json("config.json", model_type="llava")
        if taken:
            assert made.settled() == (made.open().spec.prompt, None)
        else:
            with pytest.raises(CheckpointError, match=f"its name is '.*{name}'"):
                made.settled()


@pytest.mark.parametrize("config", [{}, {"_name_or_path": "prompt-tuned"}, {"version": "4.2"}, {"_name_or_path": ""}])
def test_where_nothing_names_a_prompt_the_user_is_told(folder: Folder, config: dict[str, str]) -> None:
    prompt, note = folder.json("config.json", model_type="llava_llama", **config).settled()
    assert prompt == folder.open().spec.prompt
    assert "--prompt" in str(note) and "which prompt" in str(note)


# A file


def given(folder: Folder, **fields: Any) -> str:
    path = folder.path.parent / "prompt.json"
    path.write_text(json.dumps({k: v for k, v in {**OWN_FILE, **fields}.items() if v is not ...}))
    return str(path)


def test_a_file_with_a_prompt(folder: Folder) -> None:
    prompt, note = folder.settled(given(folder))
    base = folder.open().spec.prompt
    wanted = dataclasses.replace(
        base,
        question=Questions((Text("### User: "), Slot("content"), Text("\n")), None, base.question.later),
        image=(Slot("image"),),
        answer=(Text("### Assistant: "), Slot("answer", "both"), Ids((7,))),
        generation=(Text("### Assistant:"),),
        default_system="",
        stop_strings=("###",),
    )
    assert (prompt, note) == (wanted, None)
    ids = {"bos_id": None, "end_ids": [7, 3], "stop_ids": [2, 7], "image_tokens": 144, "restarts": []}
    prompt, _ = folder.settled(given(folder, **ids))
    assert (prompt.bos_id, prompt.end_ids, prompt.stop_ids, prompt.restarts) == (None, (7, 3), (2, 7), ())


def test_a_file_with_the_prompt_of_a_bundle_of_schema_1(folder: Folder) -> None:
    path = folder.path.parent / "prompt.json"
    path.write_text(json.dumps(OLD_FILE))
    prompt, _ = folder.settled(str(path))
    base = folder.open().spec.prompt
    assert (prompt.generation, prompt.restarts, prompt.bos_id) == ((Text("### Assistant:"),), base.restarts, 1)
    assert (prompt.end_ids, prompt.stop_ids, prompt.image_tokens) == ((2,), (2,), 144)
    for changes, said in (({"user": "x"}, "holds {text} 0 times"), ({"usr": "x"}, "unknown fields: usr")):
        path.write_text(json.dumps(OLD_FILE | changes))
        with pytest.raises(UsageError) as caught:
            folder.settled(str(path))
        assert said in caught.value.message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answer": ...}, "lacks answer"),
        ({"answer": ..., "stop_strings": ...}, "lacks answer, stop_strings"),
        ({"usr": "x"}, "unknown fields: usr"),
        ({"answer": 3}, "has answer 3"),
        ({"answer": [3]}, "answer has the piece 3"),
        ({"answer": [{"slot": "answer", "text": ""}]}, "answer has the piece {"),
        ({"answer": [{"slot": "reply"}]}, "answer has the piece {"),
        ({"answer": [{"slot": "answer", "trim": "all"}]}, "answer has the piece {"),
        ({"generation": [{"ids": []}]}, "generation has the piece {"),
        ({"generation": [{"ids": [True]}]}, "generation has the piece {"),
        ({"generation": [{"text": None}]}, "generation has the piece {"),
        ({"question": {"first": [], "later": []}}, "question lacks after_system"),
        ({"question": None}, "has question None"),
        ({"image_question": {}}, "image_question lacks"),
        ({"restarts": ["end"]}, "has restarts ('end',)"),
        ({"default_system": "Hi."}, "question.after_system has no slot for it"),
        ({"stop_ids": 2}, "has stop_ids 2"),
        ({"stop_strings": "###"}, "has stop_strings '###'"),
        ({"end_ids": [-1]}, "has end_ids (-1,)"),
        ({"end_ids": [True]}, "has end_ids (True,)"),
        ({"bos_id": 1.5}, "has bos_id 1.5"),
        ({"answer": [{"slot": "answer"}] * 2}, "answer has the slot 'answer' 2 times, not 1"),
        ({"image": []}, "image has the slot 'image' 0 times, not 1"),
        ({"generation": [{"slot": "answer"}]}, "generation has the slot 'answer' 1 times, not 0"),
        (
            {"question": {**QUESTION, "after_system": [{"slot": "content"}, {"slot": "system"}]}},
            "question.after_system has its slots in the order content, system",
        ),
        ({"generation": [{"ids": [512]}]}, "ids is 512, of 512 tokens"),
        ({"image_tokens": 576}, "image_tokens is 576, and the projector makes 144"),
        ({"end_ids": [512], "stop_ids": [512]}, "end_ids is 512, of 512 tokens"),
        ({"bos_id": 9999}, "bos_id is 9999"),
        ({"end_ids": [7]}, "end_ids begin with 7, which is not one of the stop_ids [2]"),
        ({"stop_ids": []}, "stop_ids has no id"),
        ({"stop_strings": [""]}, "stop_strings has an empty text"),
        ({"answer": [{"text": "<s>"}, {"slot": "answer"}]}, "the text '<s>' has the special token '<s>'"),
        ({"generation": [{"text": "</s>A:"}]}, "the text '</s>A:' has the special token '</s>'"),
    ],
)
def test_a_file_that_is_no_prompt(folder: Folder, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=r"prompt\.json") as caught:
        folder.settled(given(folder, **fields))
    assert said in caught.value.message and caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_a_file_of_something_else(folder: Folder, content: bytes) -> None:
    path = folder.path.parent / "prompt.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"prompt\.json") as caught:
        folder.settled(str(path))
    assert "vicuna, llava_v1" in str(caught.value.hint)


@pytest.mark.parametrize("asked", ["Vicuna", "llama-2", "", "no/such.json", ".", "a\0b"])
def test_a_name_that_is_not_known(folder: Folder, asked: str) -> None:
    with pytest.raises(UsageError) as caught:
        folder.settled(asked)
    assert "vicuna, llava_v1" in str(caught.value.hint)


# A pair of GGUF files


@pytest.fixture(scope="module", params=["ldpnetv2", "mlp2x_gelu"])
def pair(request: pytest.FixtureRequest, exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """As this project writes it: of a MobileVLM, and of what may be any LLaVA."""
    checkpoint = open_checkpoint(str(exports.checkpoint(request.param)))
    folder, files = tmp_path_factory.mktemp(request.param), []
    vision, decoder = pipeline.components(checkpoint)
    for component in (decoder, dataclasses.replace(vision, role="mmproj")):
        module = component.load(checkpoint.weights)
        files += write(format, component, module, "f16", folder, checkpoint=checkpoint).files[:1]
    return [Path(file) for file in files]


def reopened(pair: list[Path], folder: Path, **settings: str) -> Checkpoint:
    """With other settings of the decoder's file."""
    path = folder / pair[0].name
    path.unlink(missing_ok=True)
    rewrite(gguf.read(pair[0]), path, Change(settings))
    return open_checkpoint(str(path), mmproj=pair[1])


@pytest.mark.parametrize("text", [None, *VICUNA.values()])
def test_a_gguf_file_that_renders_the_published_prompt(pair: list[Path], tmp_path: Path, text: str | None) -> None:
    found = reopened(pair, tmp_path, **({TEMPLATE: text} if text else {}))
    assert prompts.settle(found, None) == (found, None)


def test_a_gguf_file_with_a_prompt_of_its_own(pair: list[Path], tmp_path: Path) -> None:
    found = reopened(pair, tmp_path, **{TEMPLATE: LLAMA_2})
    assert prompts.settle(found, None)[0].spec.prompt.question.first[0] == Text("[INST] ")
    again, note = prompts.settle(found, "llava_v1")
    assert (again.spec.prompt.default_system, note) == (HUMAN, None)
    both = {TEMPLATE: VICUNA["terse"], f"{TEMPLATE}.tool_use": LLAMA_2}
    assert prompts.settle(reopened(pair, tmp_path, **both), None)[1] is None
    named = {TEMPLATE: " ", f"{TEMPLATE}.x": VICUNA["terse"], f"{TEMPLATE}.y": CHATML}
    with pytest.raises(CheckpointError, match=r"chat_template\.x renders vicuna\n.*chat_template\.y renders"):
        prompts.settle(reopened(pair, tmp_path, **named), None)


def test_a_gguf_file_without_a_template(pair: list[Path], tmp_path: Path) -> None:
    mobilevlm = open_checkpoint(str(pair[0]), mmproj=pair[1]).published
    for name, refused in (("llava-v1.5-7b", False), ("LLaVA-Llama-2-7b", True), ("Tiny", False)):
        found = reopened(pair, tmp_path, **{TEMPLATE: " ", "general.name": name})
        if refused and not mobilevlm:
            with pytest.raises(CheckpointError, match="LLaVA-Llama-2-7b"):
                prompts.settle(found, None)
        else:
            settled, note = prompts.settle(found, None)
            assert settled == found
            assert (note is None) == (mobilevlm or name == "llava-v1.5-7b")


# The whole way


def test_an_export_with_a_prompt_of_its_own(exports: Exports, folder: Folder, tmp_path: Path) -> None:
    last = OWN["a picture after its question"][0]
    folder.json("config.json", model_type="llava_llama").json("tokenizer_config.json", chat_template=last)
    out = tmp_path / "out"
    refused = call("export", folder.path, "-o", out, "--scheme", "fp32")
    assert refused.code == 1 and "tokenizer_config.json" in refused.err and "after its question" in refused.err
    assert not out.exists()
    wrong = call("export", folder.path, "-o", out, "--scheme", "fp32", "--prompt", "ChatML")
    assert wrong.code == 2 and "known" not in wrong.err and "vicuna, llava_v1" in wrong.err
    assert call("export", folder.path, "-o", out, "--scheme", "fp32", "--prompt", given(folder)).code == 0
    manifest = manifest_of(out)
    assert {key: manifest["prompt"][key] for key in OWN_FILE} == OWN_FILE
    assert manifest["source"]["prompt"] == "file" and str(tmp_path) not in json.dumps(manifest)
    assert verify_against(Bundle.open(out), str(folder.path), None, threads=1).ok


def test_an_export_with_a_published_prompt(exports: Exports, folder: Folder, tmp_path: Path) -> None:
    folder.json("config.json", model_type="llava_llama")
    said = call("export", folder.path, "-o", tmp_path / "told", "--scheme", "fp32")
    assert said.code == 0 and "which prompt it learned" in said.err
    last = OWN["a picture after its question"][0]
    folder.json("tokenizer_config.json", chat_template=last)
    said = call("export", folder.path, "-o", tmp_path / "asked", "--scheme", "fp32", "--prompt", "llava_v1")
    assert said.code == 0 and "note" not in said.err
    manifest = manifest_of(tmp_path / "asked")
    assert (manifest["source"]["prompt"], manifest["prompt"]["default_system"]) == ("llava_v1", HUMAN)
    bundle = Bundle.open(tmp_path / "asked")
    assert verify_against(bundle, str(folder.path), None, threads=1).ok
    lying = dataclasses.replace(bundle.manifest, source={**bundle.manifest.source, "prompt": str(tmp_path / "x.json")})
    with pytest.raises(EdgeError, match="chat template of its own"):
        verify_against(dataclasses.replace(bundle, manifest=lying), str(folder.path), None, threads=1)
    assert "prompt" not in manifest_of(tmp_path / "told")["source"]


def test_an_export_with_the_checkpoint_s_own_template(folder: Folder, tmp_path: Path) -> None:
    """ChatML, with its tokens in the tokenizer: exported, verified against the checkpoint, asked."""
    size = folder.open().spec.decoder.vocab
    listed = {str(size - 1 - n): {"content": t, "special": True} for n, t in enumerate(("<|im_end|>", "<|im_start|>"))}
    folder.json("config.json", model_type="llava_llama")
    folder.json("tokenizer_config.json", chat_template=CHATML, added_tokens_decoder=listed)
    out = tmp_path / "out"
    made = call("export", folder.path, "-o", out, "--scheme", "fp32")
    assert made.code == 0 and "which prompt it learned" not in made.err
    prompt = manifest_of(out)["prompt"]
    assert (prompt["end_ids"], prompt["generation"][2]) == ([size - 1], {"ids": [size - 2]})
    assert size - 1 in prompt["stop_ids"]
    before, image, after = prompt["golden"]["segments"]
    assert image is None and before[:2] == [1, size - 2] and size - 1 in after
    bundle = Bundle.open(out)
    assert verify_against(bundle, str(folder.path), None, threads=1).ok
    with edge.load(out, threads=1) as session:
        chat = session.chat(np.zeros((8, 8, 3), np.uint8))
        chat.ask("What is this? <|im_end|>", max_tokens=3)
        told = session.last
        chat.ask("Why?", max_tokens=3)
        # All of what the model wrote is remembered but the token that was never fed.
        assert session.last.cached_tokens >= told.prompt_tokens + told.generated_tokens - 1
    assert "<|im_start|>" not in call("inspect", out).out and str([size - 2]) in call("inspect", out).out
