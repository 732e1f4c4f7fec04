"""A prompt's template as the Jinja text that llama.cpp and its kin read from `tokenizer.chat_template`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

from edge.spec import PromptSpec
from edge.spec.pieces import Ids, Piece, Pieces, Questions, Slot, Text

Spell = Callable[[int], str]  # the text of a token
MEDIA = "<__media__>"  # what llama.cpp's multimodal programs put where a picture stands


def jinja(spec: PromptSpec, spell: Spell) -> str:
    """Renders what `edge.inputs.prompt` feeds; `spell` gives the text of a special token.

    The id that begins a text is the tokenizer's business (`add_bos_token`). llama.cpp writes its mark right before the
    question: what the model wants between the two is put there.
    """
    at = spec.image.index(Slot("image"))
    before, after = _spelled(spec.image[:at], spell), _spelled(spec.image[at + 1 :], spell)
    marks = ""
    if after:  # a caller who knows the model wrote it already
        marks += f" | replace({_text(MEDIA + after)}, {_text(MEDIA)})"
    if before or after:
        marks += f" | replace({_text(MEDIA)}, {_text(before + MEDIA + after)})"
    answer = f"{_written(spec.answer, spell)} + {_text(_spelled([Ids(spec.end_ids)], spell))}"
    return (
        _questions(spec, spell, marks) + "{% elif message['role'] == 'assistant' %}{{ " + answer + " }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ " + _text(_spelled(spec.generation, spell)) + " }}{% endif %}"
    )


def _questions(spec: PromptSpec, spell: Spell, marks: str) -> str:
    """All before a message that is no question. `marks` are the filters that write what stands around an image."""
    asked = spec.question
    whole, first = asked.after_system, asked.first
    if spec.image_question is None and asked.later == first and whole and whole[-len(first) :] == first:
        system = whole[: -len(first)]  # stands for itself
        default = _text(_spelled(system, spell, spec.default_system)) if spec.default_system else "''"
        return (
            "{% if messages and messages[0]['role'] == 'system' %}{% if messages[0]['content'] %}{{ "
            + _written(system, spell, system="messages[0]['content']")
            + " }}{% endif %}{% else %}{{ "
            + default
            + " }}{% endif %}{% for message in messages %}{% if message['role'] == 'user' %}{{ "
            + _written(first, spell, marks)
            + " }}"
        )

    def either(of: Callable[[Questions], Pieces | None]) -> str:
        found = of(asked)
        plain = "raise_exception('no system message')" if found is None else _written(found, spell, marks)
        if spec.image_question is None or (shown := of(spec.image_question)) is None:
            return plain
        asks = f"{_text(MEDIA)} in message['content']"
        if spec.image_question_when == "first":
            asks = f"message['content'].startswith({_text(MEDIA)})"
        return f"({_written(shown, spell, marks)}) if {asks} else ({plain})"

    return (
        "{% if messages and messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
        "{% else %}{% set system = " + _text(spec.default_system) + " %}{% set turns = messages %}{% endif %}"
        "{% for message in turns %}{% if message['role'] == 'user' %}"
        "{% if not loop.first %}{{ " + either(lambda q: q.later) + " }}"
        "{% elif system %}{{ " + either(lambda q: q.after_system) + " }}"
        "{% else %}{{ " + either(lambda q: q.first) + " }}{% endif %}"
    )


def _written(pieces: Pieces, spell: Spell, marks: str = "", system: str = "system") -> str:
    """An expression: literals around what stands in the slots."""
    terms, literal = [], ""
    for piece in pieces:
        if isinstance(piece, Slot):
            said = system if piece.slot == "system" else "message['content']"
            said += {"none": "", "left": ".lstrip()", "right": ".rstrip()", "both": ".strip()"}[piece.trim]
            terms += [_text(literal), f"({said}{marks})" if piece.slot == "content" else said]
            literal = ""
        else:
            literal += _spelled([piece], spell)
    return " + ".join([*terms, _text(literal)])


def _spelled(pieces: Iterable[Piece], spell: Spell, said: str = "") -> str:
    """With `said` in the slots."""
    return "".join(
        piece.text if isinstance(piece, Text) else "".join(map(spell, piece.ids)) if isinstance(piece, Ids) else said
        for piece in pieces
    )


def _text(text: str) -> str:
    """A literal, cut after each colon. Without `--jinja` llama.cpp's multimodal CLI renders no template: it looks for
    words like "USER: " in it, and silently writes the prompt of another model. Of this one it says what it needs."""
    pieces = [piece for piece in re.split(r"(?<=:)", text) if piece] or [""]
    return " + ".join(json.dumps(piece, ensure_ascii=False) for piece in pieces)
