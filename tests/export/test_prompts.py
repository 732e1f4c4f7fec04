"""Which prompt an export writes: asked for, rendered by the checkpoint's own template, or published with its family."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, LLAMA_2, OWN, VICUNA
from commands import call
from exported import Exports, manifest_of
from small_models import write

from edge.bundle.manifest import Bundle
from edge.errors import CheckpointError, EdgeError, UsageError
from edge.formats import gguf
from edge.spec import PromptSpec
from exporters import pipeline, prompts
from exporters.checkpoint import Checkpoint, open_checkpoint
from exporters.formats import gguf as format
from exporters.gguf import rendering
from exporters.gguf.fault import Change
from exporters.gguf.names import TEMPLATE
from exporters.gguf.rewrite import rewrite
from exporters.published import PROMPTS, SYSTEM
from exporters.verify_checkpoint import verify_against

HUMAN = SYSTEM.replace("user", "human")
LLAVA_V1 = VICUNA["terse"].replace("curious user", "curious human").replace("the user\\'s", "the human\\'s")
OTHER = VICUNA["typed entries"]  # the same once more
OWN_FILE = {
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


@pytest.mark.parametrize(("text", "said"), OWN.values(), ids=OWN.keys())
@pytest.mark.parametrize("model_type", ["mobilevlm", "llava_llama"])
def test_a_template_of_its_own_is_refused(folder: Folder, text: str, said: str, model_type: str) -> None:
    folder.json("config.json", model_type=model_type).json("tokenizer_config.json", chat_template=text)
    with pytest.raises(CheckpointError, match="chat template of its own") as caught:
        folder.settled()
    assert "tokenizer_config.json renders" in caught.value.message
    assert repr(said)[1:-1] in caught.value.message
    assert all(word in str(caught.value.hint) for word in ("--prompt", *PROMPTS, "FILE"))
    for name, system in PROMPTS.items():
        assert folder.settled(name)[0].default_system == system


PLACES = {
    "tokenizer_config.json": lambda folder, text: folder.json("tokenizer_config.json", chat_template=text),
    "chat_template.jinja": lambda folder, text: folder.text("chat_template.jinja", text),
    "chat_template.json": lambda folder, text: folder.json("chat_template.json", chat_template=text),
    "processor_config.json": lambda folder, text: folder.json("processor_config.json", chat_template=text),
    "additional_chat_templates": lambda folder, text: folder.text("additional_chat_templates/x.jinja", text),
}


@pytest.mark.parametrize("own", PLACES)
@pytest.mark.parametrize("known", PLACES)
def test_places_that_contradict_each_other(folder: Folder, own: str, known: str) -> None:
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
    with pytest.raises(CheckpointError) as caught:
        folder.settled()
    lines = {line.split()[0].split("/")[0]: line for line in caught.value.message.splitlines()[1:]}
    assert "<|im_start|>" in lines[own]
    assert own == known or lines.get(known, "renders vicuna").endswith("renders vicuna")


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
        ("{{ 'a' * 10**8 }}", "leaves out"),
    ],
)
def test_a_template_that_renders_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setattr(rendering, "_SECONDS", 2)
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
    texts = {k: v for k, v in OWN_FILE.items() if k != "stop_strings"}
    assert (prompt, note) == (dataclasses.replace(base, **texts, stop_strings=("###",)), None)
    ids = {"bos_id": None, "end_id": 7, "stop_ids": [2, 7], "image_tokens": 144}
    prompt, _ = folder.settled(given(folder, **ids))
    assert (prompt.bos_id, prompt.end_id, prompt.stop_ids) == (None, 7, (2, 7))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"user": ...}, "lacks user"),
        ({"user": ..., "stop_strings": ...}, "lacks stop_strings, user"),
        ({"usr": "x"}, "unknown fields: usr"),
        ({"user": 3}, "has user 3"),
        ({"stop_ids": 2}, "has stop_ids 2"),
        ({"stop_strings": "###"}, "has stop_strings '###'"),
        ({"end_id": -1}, "has end_id -1"),
        ({"end_id": True}, "has end_id True"),
        ({"bos_id": 1.5}, "has bos_id 1.5"),
        ({"user": "User:"}, "user is 'User:', and holds {text} 0 times"),
        ({"assistant": "{text}{text}"}, "holds {text} 2 times"),
        ({"image": ""}, "image is '', and holds <image> 0 times"),
        ({"image_tokens": 576}, "image_tokens is 576, and the projector makes 144"),
        ({"end_id": 512, "stop_ids": [512]}, "end_id is 512, of 512 tokens"),
        ({"bos_id": 9999}, "bos_id is 9999"),
        ({"end_id": 7}, "end_id 7 is not one of the stop_ids [2]"),
        ({"stop_ids": []}, "is not one of the stop_ids []"),
        ({"stop_strings": [""]}, "stop_strings has an empty text"),
        ({"user": "<s>[INST] {text} [/INST]"}, "user has the special token '<s>'"),
        ({"generation": "</s>A:"}, "generation has the special token '</s>'"),
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
    with pytest.raises(CheckpointError, match=r"tokenizer\.chat_template renders '<s>\[INST\] <image>"):
        prompts.settle(found, None)
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
    folder.json("config.json", model_type="llava_llama").json("tokenizer_config.json", chat_template=CHATML)
    out = tmp_path / "out"
    refused = call("export", folder.path, "-o", out, "--scheme", "fp32")
    assert refused.code == 1 and "tokenizer_config.json" in refused.err and "<|im_start|>" in refused.err
    assert not out.exists()
    wrong = call("export", folder.path, "-o", out, "--scheme", "fp32", "--prompt", "chatml")
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
    folder.json("tokenizer_config.json", chat_template=LLAMA_2)
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
