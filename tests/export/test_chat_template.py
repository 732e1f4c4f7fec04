"""Chat templates of a checkpoint's own: found where transformers finds them, and judged by what they render."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_templates import CHATML, IDEFICS, LLAMA_2, LLAMA_3, VICUNA
from conftest import REPOSITORY
from transformers import PreTrainedTokenizerFast

from edge.errors import CheckpointError
from edge.formats.gguf import GGUFArray
from exporters.gguf import rendering
from exporters.sources import chat_template
from exporters.sources.published import prompt

SPEC = prompt(144, 1, (2,))
A, B, C = "{{ 'a' }}", "{{ 'b' }}", "{{ 'c' }}"
TOKENIZER = (REPOSITORY / "tests" / "data" / "tokenizer.json").read_text()


def written(folder: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


# Where they are kept

TOLD = [{"name": "default", "template": A}, {"name": "tool_use", "template": B}]
PLACES: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "none": ({"tokenizer_config.json": {"model_max_length": 8}}, {}),
    "null": ({"tokenizer_config.json": {"chat_template": None}}, {}),
    "blank": ({"tokenizer_config.json": {"chat_template": " \n"}, "chat_template.jinja": ""}, {}),
    "a text": ({"tokenizer_config.json": {"chat_template": A}}, {"tokenizer_config.json": A}),
    "a list": ({"tokenizer_config.json": {"chat_template": TOLD}}, {"tokenizer_config.json": A}),
    "a list without a default": (
        {"tokenizer_config.json": {"chat_template": [{"name": "x", "template": A}, {"name": "y", "template": B}]}},
        {"tokenizer_config.json: x": A, "tokenizer_config.json: y": B},
    ),
    "a mapping": ({"tokenizer_config.json": {"chat_template": {"default": A, "rag": B}}}, {"tokenizer_config.json": A}),
    "a file": ({"chat_template.jinja": A}, {"chat_template.jinja": A}),
    "files": ({"chat_template.jinja": A, "additional_chat_templates/rag.jinja": B}, {"chat_template.jinja": A}),
    "named files": (
        {"additional_chat_templates/x.jinja": A, "additional_chat_templates/y.jinja": B},
        {"additional_chat_templates/x.jinja": A, "additional_chat_templates/y.jinja": B},
    ),
    "a processor's": ({"chat_template.json": {"chat_template": A}}, {"chat_template.json": A}),
    "a processor's config": ({"processor_config.json": {"chat_template": A}}, {"processor_config.json": A}),
    "a processor's config without": ({"processor_config.json": {"processor_class": "LlavaProcessor"}}, {}),
    "several": (
        {
            "tokenizer_config.json": {"chat_template": A},
            "chat_template.jinja": B,
            "chat_template.json": {"chat_template": C},
        },
        {"tokenizer_config.json": A, "chat_template.jinja": B, "chat_template.json": C},
    ),
}


@pytest.mark.parametrize(("files", "expected"), PLACES.values(), ids=PLACES.keys())
def test_templates_are_found(tmp_path: Path, files: dict[str, object], expected: dict[str, str]) -> None:
    assert chat_template.find(written(tmp_path, files)) == expected
    kept = {path.relative_to(tmp_path).as_posix() for path in chat_template.files(tmp_path)}
    assert kept == files.keys() - {"tokenizer_config.json"}


@pytest.mark.parametrize("kind", [kind for kind in PLACES if "processor" not in kind and kind != "blank"])
def test_what_transformers_takes_is_among_them(tmp_path: Path, kind: str) -> None:
    files, expected = PLACES[kind]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(written(tmp_path, {"tokenizer.json": TOKENIZER, **files}))
    if not expected:
        assert tokenizer.chat_template is None
    elif isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        assert set(tokenizer.chat_template.values()) == set(expected.values())
    else:
        assert tokenizer.get_chat_template() in expected.values()


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"chat_template": 3}},
        {"tokenizer_config.json": {"chat_template": [1]}},
        {"tokenizer_config.json": {"chat_template": [{"name": "default"}]}},
        {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": 1}]}},
        {"tokenizer_config.json": {"chat_template": {"default": [A]}}},
        {"chat_template.json": {"conversation": []}},
        {"chat_template.json": "{"},
        {"processor_config.json": "[]"},
    ],
)
def test_what_is_no_template_is_named(tmp_path: Path, files: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(files)).replace(".", r"\.")):
        chat_template.find(written(tmp_path, files))


def test_a_template_of_no_encoding(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{ 1 }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
        chat_template.find(tmp_path)


def gguf(settings: dict[str, object]) -> dict[str, str]:
    head = SimpleNamespace(settings=settings)
    source = SimpleNamespace(head=head, path=Path("a.gguf"), get=settings.get)
    return chat_template.of_gguf(source)  # type: ignore[arg-type]


def test_a_gguf_file_keeps_them_by_name() -> None:
    key = "tokenizer.chat_template"
    names = {"tokenizer.chat_templates": GGUFArray(8, 1, ("tool_use",))}
    assert gguf({"general.name": A}) == {} == gguf({key: " "})
    assert gguf({key: A}) == {key: A} == gguf({key: A, f"{key}.tool_use": B} | names)
    assert gguf({f"{key}.x": A, f"{key}.y": B}) == {f"{key}.x": A, f"{key}.y": B}
    with pytest.raises(CheckpointError, match=r"a\.gguf has a damaged tokenizer\.chat_template"):
        gguf({key: 3})


# What they render


TALKS = [
    [{"role": "user", "content": "Hi <b>&\"'"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "\né"}],
]
OTHERS = {
    "tools": "{% if tools is not none %}{{ raise_exception('tools') }}{% endif %}{{ documents is none }}",
    "json": "{% for m in messages %}{{ m | tojson }}{{ m['content'] | tojson(indent=1) }}{% endfor %}",
    "loops": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}\n{% endfor %}",
    "blocks": "  {% if true %}\n x\n  {% endif %}\n{% generation %}y{% endgeneration %}",
}


@pytest.mark.parametrize("text", [VICUNA["terse"], LLAMA_2, LLAMA_3, CHATML, IDEFICS, *OTHERS.values()])
def test_the_sandbox_renders_as_transformers_does(text: str) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(REPOSITORY / "tests" / "data" / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    typed = text is IDEFICS
    talks = [[{**m, "content": [{"type": "text", "text": m["content"]}]} if typed else m for m in t] for t in TALKS]
    expected = [
        tokenizer.apply_chat_template(talk, chat_template=text, tokenize=False, add_generation_prompt=True)
        for talk in talks
    ]
    assert rendering.render(text, talks, "<s>", "</s>") == expected
