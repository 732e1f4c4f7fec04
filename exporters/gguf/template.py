"""A prompt's template as the Jinja text that llama.cpp and its kin read from `tokenizer.chat_template`."""

from __future__ import annotations

import json
import re

from edge.prompt import MARK, TEXT
from edge.spec import PromptSpec

MEDIA = "<__media__>"  # what llama.cpp's multimodal programs put where a picture stands


def jinja(spec: PromptSpec, end: str) -> str:
    """Renders what `edge.prompt` feeds; `end` is the text of `spec.end_id`.

    The id that begins a text is the tokenizer's business (`add_bos_token`). llama.cpp writes its mark right before the
    question: what the model wants between the two is put there.
    """
    system, user, answer = (_around(piece) for piece in (spec.system, spec.user, spec.assistant))
    before, _, after = spec.image.partition(MARK)
    question = "message['content']"
    if after:  # a caller who knows the model wrote it already
        question += f" | replace({_text(MEDIA + after)}, {_text(MEDIA)})"
    if before or after:
        question += f" | replace({_text(MEDIA)}, {_text(before + MEDIA + after)})"
    default = _text(spec.system.replace(TEXT, spec.default_system)) if spec.default_system else "''"
    return (
        "{% if messages and messages[0]['role'] == 'system' %}"
        "{% if messages[0]['content'] %}{{ " + f"{system[0]} + messages[0]['content'] + {system[1]}" + " }}{% endif %}"
        "{% else %}{{ " + default + " }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ " + f"{user[0]} + ({question}) + {user[1]}" + " }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ " + f"{answer[0]} + message['content'] + {answer[1]} + {_text(end)}" + " }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ " + _text(spec.generation) + " }}{% endif %}"
    )


def _around(piece: str) -> tuple[str, str]:
    before, _, after = piece.partition(TEXT)
    return _text(before), _text(after)


def _text(text: str) -> str:
    """A literal, cut after each colon. Without `--jinja` llama.cpp's multimodal CLI renders no template: it looks for
    words like "USER: " in it, and silently writes the prompt of another model. Of this one it says what it needs."""
    pieces = [piece for piece in re.split(r"(?<=:)", text) if piece] or [""]
    return " + ".join(json.dumps(piece, ensure_ascii=False) for piece in pieces)
