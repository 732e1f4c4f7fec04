"""A chat template as pieces: the ids are those of transformers' apply_chat_template."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import tokenizers
from chat_templates import CHATML, DAMAGED, IDEFICS, LLAMA_2, LLAMA_3, OWN, SMOLVLM, VICUNA
from conftest import REPOSITORY
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.spec import PromptSpec
from edge.spec.pieces import Ids, Slot, Text
from edge.types import Embeddings, Tokens
from exporters.gguf import rendering, template
from exporters.sources.published import prompt
from exporters.sources.published_templates import SPECIAL, TEMPLATES
from exporters.sources.template_pieces import cut
from exporters.sources.template_rendered import Template, Uncut, Vocabulary

IMAGE = Embeddings(np.zeros((1, 1), np.float32), "image")
QWEN_2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_2_VL = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] "
    "+ '<|end|>\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_3 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA_3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PHI_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
GEMMA_TOKENS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
UTTERANCE = ("<|im_start|>", "<end_of_utterance>", "<image>")
# A template -> its text, bos_token, eos_token, special tokens beside <s> and </s>, whether it takes a system message.
FAMILIES: dict[str, tuple[str, str, str, tuple[str, ...], bool]] = {
    "vicuna": (VICUNA["terse"], "<s>", "</s>", (), True),
    "llama 2": (LLAMA_2, "<s>", "</s>", (), True),
    "llama 3": (LLAMA_3, "<|begin_of_text|>", "<|eot_id|>", LLAMA_3_TOKENS, True),
    "chatml": (CHATML, "", "<|im_end|>", IM, True),
    "qwen 2": (QWEN_2, "", "<|im_end|>", IM, True),
    "gemma": (GEMMA, "<bos>", "<eos>", GEMMA_TOKENS, False),
    "phi 3": (PHI_3, "<s>", "<|endoftext|>", PHI_TOKENS, True),
    "smolvlm": (SMOLVLM, "<|im_start|>", "<end_of_utterance>", UTTERANCE, True),
    "idefics": (IDEFICS, "<|im_start|>", "<end_of_utterance>", UTTERANCE, True),
    "mistral": (MISTRAL, "<s>", "</s>", (), False),
    "mistral 3": (MISTRAL_3, "<s>", "</s>", ("[INST]", "[/INST]"), False),
}
# A prompt's name -> the template it must be equal to.
NAMED = {"chatml": "chatml", "llama_2": "llama 2", "llama3": "llama 3", "gemma": "gemma", "mistral": "mistral"} | {
    "phi3": "phi 3"
}


@cache
def tokenizer_json(specials: tuple[str, ...], kind: str, strips: bool = False) -> str:
    data = json.loads((REPOSITORY / "tests" / "data" / "tokenizer.json").read_text())
    if kind == "first":  # SentencePiece with legacy: false
        data["normalizer"] = None
        data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    made = tokenizers.Tokenizer.from_str(json.dumps(data))
    if kind == "bytes":
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
        )
        made.train_from_iterator(["user\n\nassistant\n system USER: ASSISTANT: Who is she? \n A pilot."] * 9, trainer)
    made.add_special_tokens(
        [AddedToken(s, special=True, normalized=False, rstrip=strips) for s in ("<s>", "</s>", *specials)]
    )
    text: str = made.to_str()
    return text


def theirs(whole: str, bos: str, eos: str) -> PreTrainedTokenizerFast:
    made = tokenizers.Tokenizer.from_str(whole)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos or None, eos_token=eos)


def pieces(text: str, whole: str, bos: str, eos: str) -> PromptSpec:
    return cut(Template(text, prompt(4, None, (2,)), Vocabulary(whole, bos, eos)))


def ids(spec: PromptSpec, whole: str, turns: Sequence[Turn], system: str | None) -> list[int | None]:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(whole))
    found = segments(spec, tokenizer, turns, system)
    return [i for part in found for i in (part.ids if isinstance(part, Tokens) else [None])]


QUESTIONS = ("Who is she?", " padded \n", "Größe: 3 ≠ 4\n\n- x", "[INST] <<SYS>>", "Why?")
ANSWERS = ("A pilot.", "Yes.", "\n1. a\n2. b ", "No")
SYSTEMS = (None, "Be brief.", " Two lines\n\nhere ")


def talks(questions: Sequence[str], takes_system: bool) -> list[tuple[list[str], list[str], str | None]]:
    return [
        (
            [questions[(n + shift) % len(questions)] for n in range(count)],
            [ANSWERS[(n + shift) % len(ANSWERS)] for n in range(count - 1)],
            system,
        )
        for count, shift, system in itertools.product((1, 2, 3, 4), range(3), SYSTEMS)
        if takes_system or system is None
    ]


def messages(asked: list[str], answered: list[str], system: str | None, typed: bool) -> list[dict[str, Any]]:
    said = [] if system is None else [("system", system)]
    for question, answer in itertools.zip_longest(asked, answered):
        said += [("user", question)] + ([("assistant", answer)] if answer is not None else [])
    return [{"role": r, "content": [{"type": "text", "text": t}] if typed else t} for r, t in said]


def turns_of(asked: list[str], answered: list[str]) -> list[Turn]:
    return [Turn.about(q, (), a) for q, a in itertools.zip_longest(asked, answered)]


@pytest.mark.parametrize("kind", ["always", "first", "bytes"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_are_those_of_transformers(family: str, kind: str) -> None:
    text, bos, eos, specials, takes_system = FAMILIES[family]
    whole = tokenizer_json(specials, kind)
    spec, tokenizer = pieces(text, whole, bos, eos), theirs(whole, bos, eos)
    assert (spec.question.after_system is not None) == takes_system
    options: dict[str, Any] = {"chat_template": text, "add_generation_prompt": True, "return_dict": False}
    names = ("<s>", "</s>", *specials)
    plain = [q for q in QUESTIONS if not any(name in q for name in names)]
    typed = family in ("smolvlm", "idefics")
    for asked, answered, system in talks(plain, takes_system):
        wanted = tokenizer.apply_chat_template(messages(asked, answered, system, typed), **options)
        assert ids(spec, whole, turns_of(asked, answered), system) == wanted
    special = {tokenizer.convert_tokens_to_ids(name) for name in names}
    hostile = ("".join(names), f"a{names[-1]}b", names[0])
    for asked, answered, system in talks(hostile, takes_system):
        said = messages(asked, answered, system, typed)
        wanted = tokenizer.apply_chat_template(said, sanitize_control_tokens=True, **options)
        found = ids(spec, whole, turns_of(asked, answered), system)
        assert [i for i in found if i in special] == [i for i in wanted if i in special]
        assert tokenizer.decode(found) == tokenizer.decode(wanted)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_named_prompt_is_its_template(name: str) -> None:
    text, bos, eos, specials, _ = FAMILIES[NAMED[name]]
    whole = tokenizer_json(specials, "always")
    assert set(SPECIAL.get(name, ())) <= set(specials)
    assert pieces(TEMPLATES[name], whole, bos, eos) == pieces(text, whole, bos, eos)


@pytest.mark.parametrize(
    ("family", "text", "specials", "image", "first"),
    [
        ("smolvlm", SMOLVLM, UTTERANCE, (Slot("image"),), "User:"),
        ("idefics", IDEFICS, UTTERANCE, (Slot("image"),), "User:"),
        ("qwen 2 vl", QWEN_2_VL, (*IM, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"), None, ""),
    ],
)
@pytest.mark.parametrize("kind", ["always", "first", "bytes"])
def test_images_stand_where_the_template_puts_them(
    family: str, text: str, specials: tuple[str, ...], image: Any, first: str, kind: str
) -> None:
    bos, eos = ("<|im_start|>", "<end_of_utterance>") if specials is UTTERANCE else ("", "<|im_end|>")
    whole = tokenizer_json(specials, kind)
    spec, tokenizer = pieces(text, whole, bos, eos), theirs(whole, bos, eos)
    mark = tokenizer.convert_tokens_to_ids("<image>" if specials is UTTERANCE else "<|image_pad|>")
    if image is not None:
        assert spec.image == image
        assert Text(first) in spec.questions(True).first
    else:
        start, end = map(tokenizer.convert_tokens_to_ids, ("<|vision_start|>", "<|vision_end|>"))
        assert spec.image == (Ids((start,)), Slot("image"), Ids((end,))) and spec.image_question is None
    for counts, system in itertools.product(((1, 0), (0, 1), (2, 0), (1, 1)), (None, "Be brief.")):
        turns = [Turn.about("What is it?", [IMAGE] * counts[0], "A cat."), Turn.about("Why?", [IMAGE] * counts[1])]
        said: list[dict[str, Any]] = []
        if system is not None:
            said.append({"role": "system", "content": [{"type": "text", "text": system}]})
        for turn in turns:
            content = [{"type": "image"} if c is IMAGE else {"type": "text", "text": c} for c in turn.content]
            said.append({"role": "user", "content": content})
            if turn.answer is not None:
                said.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        wanted = tokenizer.apply_chat_template(said, chat_template=text, add_generation_prompt=True, return_dict=False)
        assert ids(spec, whole, turns, system) == [None if i == mark else i for i in wanted]


def test_tokens_that_take_the_space_beside_them() -> None:
    """As Phi-3's published tokenizer has them: <|end|> and the roles strip what follows."""
    whole = tokenizer_json(PHI_TOKENS, "always", strips=True)
    spec, tokenizer = pieces(PHI_3, whole, "<s>", "<|endoftext|>"), theirs(whole, "<s>", "<|endoftext|>")
    for asked, answered, system in talks(QUESTIONS, True):
        wanted = tokenizer.apply_chat_template(
            messages(asked, answered, system, False),
            chat_template=PHI_3,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert ids(spec, whole, turns_of(asked, answered), system) == wanted


def test_what_ends_an_answer() -> None:
    whole = tokenizer_json(IM, "always")
    spec = pieces(QWEN_2, whole, "", "<|im_end|>")
    end = tokenizers.Tokenizer.from_str(whole).token_to_id("<|im_end|>")
    assert (spec.end_ids, spec.stop_ids, spec.default_system) == ((end,), (2, end), "You are a helpful assistant.")
    spelled = pieces(CHATML, tokenizer_json((), "always"), "", "</s>")
    assert (spelled.end_ids, spelled.stop_strings) == ((), ("<|im_end|>",))  # no token of its own: the text stops


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_that_a_gguf_file_gets_renders_the_same(family: str) -> None:
    """Written from the pieces: the one text that llama.cpp's programs render, without the id that begins it."""
    text, bos, eos, specials, takes_system = FAMILIES[family]
    whole = tokenizer_json(specials, "always")
    spec, texts = pieces(text, whole, bos, eos), tokenizers.Tokenizer.from_str(whole)
    written = template.jinja(spec, lambda i: str(texts.id_to_token(i)))
    typed = family in ("smolvlm", "idefics")
    asked = talks([question for question in QUESTIONS if question.strip() == question], takes_system)
    wanted = rendering.render(text, [messages(*talk, typed) for talk in asked], bos, eos)
    found = rendering.render(written, [messages(*talk, False) for talk in asked], bos, eos)
    assert found == [str(said).removeprefix(bos) for said in wanted]
    if not takes_system:
        (refused,) = rendering.render(written, [messages(["Why?"], [], "Be brief.", False)], bos, eos)
        assert isinstance(refused, rendering.Failure) and "no system message" in refused.reason


def test_an_image_in_the_template_of_a_gguf_file() -> None:
    whole = tokenizer_json(UTTERANCE, "always")
    spec, texts = pieces(SMOLVLM, whole, "<|im_start|>", "<end_of_utterance>"), tokenizers.Tokenizer.from_str(whole)
    written = template.jinja(spec, lambda i: str(texts.id_to_token(i)))
    talk = [{"role": "user", "content": "<__media__>Who?"}], [{"role": "user", "content": "Who?"}]
    assert rendering.render(written, talk, "", "") == [
        "User:<__media__>Who?<end_of_utterance>\nAssistant:",
        "User: Who?<end_of_utterance>\nAssistant:",
    ]


REFUSED = {
    "by the turn": ("{% for m in messages %}{{ loop.index }}. {{ m['content'] }}\n{% endfor %}", "by the turn"),
    "twice": ("{% for m in messages %}{{ m['content'] }} {{ m['content'] }}</s>{% endfor %}", "2 times"),
    "no end": ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "nothing would stop the model"),
    "by what is said": (
        "{% for m in messages %}{{ 'Q: ' if '?' in m['content'] else 'A: ' }}{{ m['content'] }}</s>{% endfor %}",
        "which its pieces do not",
    ),
    "by its length": (
        "{% for m in messages %}{{ m['content'][:9] }}</s>{% endfor %}",
        "which its pieces do not",
    ),
    "in no conversation but of markers": (
        "{% for m in messages %}{% if 'Z' not in m['content'] %}{{ raise_exception('no') }}{% endif %}"
        "{{ m['content'] }}</s>{% endfor %}",
        "fails in every conversation",
    ),
    "the image last": (
        "{% for m in messages %}{% for c in m['content'] | sort(attribute='type', reverse=true) %}"
        "{{ c['text'] if c['type'] == 'text' else '<image>' }}{% endfor %}</s>{% endfor %}",
        "after its question",
    ),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_cut_says_why(text: str, said: str) -> None:
    with pytest.raises(Uncut) as caught:
        pieces(text, tokenizer_json((), "always"), "<s>", "</s>")
    assert said in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(("text", "said"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_or_hostile_template(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setattr(rendering, "_SECONDS", 1)
    with pytest.raises(Uncut) as caught:
        pieces(text, tokenizer_json((), "always"), "<s>", "</s>")
    assert said in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("text", VICUNA.values(), ids=VICUNA.keys())
def test_the_published_prompt_in_any_spelling(text: str) -> None:
    base = prompt(4, 1, (2,))
    template = Template(text, base, Vocabulary(tokenizer_json((), "always"), "<s>", "</s>"))
    assert template.differs(base) is None


@pytest.mark.parametrize(("text", "said"), OWN.values(), ids=OWN.keys())
def test_a_prompt_of_its_own(text: str, said: str) -> None:
    base = prompt(4, 1, (2,))
    template = Template(text, base, Vocabulary(tokenizer_json((), "always"), "<s>", "</s>"))
    assert "which its pieces do not" in str(template.differs(base))


def test_a_beginning_that_is_no_special_token_is_text() -> None:
    text = "{{ bos_token }}{% for m in messages %}Q {{ m['content'] }}</s>{% endfor %}"
    spec = pieces(text, tokenizer_json((), "always"), "A", "</s>")
    assert spec.bos_id is None and spec.question.first == (Text("AQ "), Slot("content"))
