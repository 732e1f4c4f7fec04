"""What a chat template renders, and whether that is the prompt that the model learned.

A template is a program of whoever made the file: it is rendered in jinja2's sandbox, in a process of its own whose time
and memory are bounded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from edge.inputs.prompt import Turn, parts
from edge.spec import PromptSpec
from edge.types import Embeddings
from exporters.gguf.template import MEDIA

Message = Mapping[str, Any]  # role, and content: a text, or a list of typed entries
_IMAGE = Embeddings(np.empty((0, 0), np.float32), "any image")
DAY = date(2024, 7, 26)  # that templates are told to write
LONGEST = 1 << 16  # characters of a template, and of what it renders; what a model is told in thousands
_SECONDS, _PATIENCE = 10, 60  # of the processor's time, and of the clock's: the machine may be busy
_CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": f"{MEDIA}What is this?"},),
    (
        {"role": "user", "content": f"{MEDIA}Who is she?"},
        {"role": "assistant", "content": "A pilot."},
        {"role": "user", "content": "Why?"},
    ),
)
# Templates are written for transformers' environment: its loop controls, `generation` blocks, filters and functions.
_SCRIPT = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, ValueError, OSError):  # Windows has none; the time is bounded from outside too
    pass
from datetime import datetime
from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)

def raise_exception(message):
    raise TemplateError(message)

def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

def reason(error):
    return [False, f"{type(error).__name__}: {error}"[:200]]

asked = json.load(sys.stdin)
environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
)
environment.filters["tojson"] = tojson
environment.globals |= {"raise_exception": raise_exception, "strftime_now": datetime(*DAY).strftime}
said = []
try:
    template = environment.from_string(asked["template"])
except Exception as error:
    said = [reason(error)] * len(asked["conversations"])
else:
    for messages in asked["conversations"]:
        try:
            text = template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=asked["generation"],
                bos_token=asked["bos"], eos_token=asked["eos"],
            )
            said.append([True, text[:LONGEST]])
        except Exception as error:
            said.append(reason(error))
json.dump(said, sys.stdout)
"""


@dataclass(frozen=True)
class Failure:
    """Why a template renders nothing of a conversation."""

    reason: str


def render(
    template: str,
    conversations: Sequence[Sequence[Message]],
    bos: str,
    eos: str,
    *,
    add_generation_prompt: bool = True,
) -> list[str | Failure]:
    """One text a conversation, or why there is none. `bos` and `eos` are the texts of these tokens.

    Raises ModuleNotFoundError without jinja2.
    """
    if find_spec("jinja2") is None:
        raise ModuleNotFoundError("jinja2 is not installed", name="jinja2")
    if len(template) > LONGEST:
        return [Failure(f"{len(template)} characters long")] * len(conversations)
    script = f"SECONDS, LONGEST, DAY = {_SECONDS}, {LONGEST}, {DAY.timetuple()[:3]}\n{_SCRIPT}"
    facts = {"bos": bos, "eos": eos, "generation": add_generation_prompt}
    asked = json.dumps({"template": template, "conversations": conversations, **facts})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", script], input=asked, capture_output=True, text=True, timeout=_PATIENCE
        )
        return [text if ok else Failure(f"cannot be rendered: {text}") for ok, text in json.loads(done.stdout)]
    except subprocess.TimeoutExpired:
        why = f"it takes more than {_PATIENCE} s"
    except ValueError:
        why = f"it ends the process ({done.returncode})"
    return [Failure(f"cannot be rendered: {why}")] * len(conversations)


def difference(template: str, spec: PromptSpec, bos: str, eos: str) -> str | None:
    """Where what the template renders leaves the prompt of `spec`, in words; None where it does not.

    `bos` may stand at its start: the tokenizer puts it there once. Raises ModuleNotFoundError without jinja2.
    """
    for conversation, said in zip(_CONVERSATIONS, _said(template, bos, eos), strict=True):
        if isinstance(said, Failure):
            return said.reason
        if apart := unlike(said.removeprefix(bos), expected(spec, conversation, lambda i: eos)):
            return apart
    return None


def damage(template: str, bos: str, eos: str) -> str | None:
    """What no chat's template may do, in words: fail, or leave a question out. Raises ModuleNotFoundError."""
    return _damage(_said(template, bos, eos))


def excerpt(template: str, bos: str, eos: str) -> str:
    """What it renders of the first conversation, cut to a line; of a template that renders it."""
    return shortened(str(_said(template, bos, eos)[0]))


def shortened(text: str, most: int = 120) -> str:
    """As Python writes it. What stands in front of a question is longer than what follows it, and less telling."""
    return repr(text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}")


@lru_cache(maxsize=8)
def _said(template: str, bos: str, eos: str) -> list[str | Failure]:
    """Of `_CONVERSATIONS`. Templates of processors want a message's content in typed entries: they are given that where
    they make nothing of a text."""
    typed = [
        [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in conversation]
        for conversation in _CONVERSATIONS
    ]
    said = render(template, [*_CONVERSATIONS, *typed], bos, eos)
    plain, entries = said[: len(_CONVERSATIONS)], said[len(_CONVERSATIONS) :]
    return entries if _damage(plain) and not _damage(entries) else plain


def _damage(said: Sequence[str | Failure]) -> str | None:
    for conversation, text in zip(_CONVERSATIONS, said, strict=True):
        if isinstance(text, Failure):
            return text.reason
        asked = [message["content"].removeprefix(MEDIA) for message in conversation if message["role"] == "user"]
        if lost := [question for question in asked if question not in text]:
            return f"leaves out {lost[0]!r}: says {shortened(text)}"
    return None


def unlike(said: str, wanted: str) -> str | None:
    """Where two texts part, in words; None where they are equal."""
    if said == wanted:
        return None
    at = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), len(wanted))
    at = min(at, len(said))
    start = max(0, at - 12)
    return f"says {said[start : at + 12]!r} for {wanted[start : at + 12]!r}"


def expected(spec: PromptSpec, conversation: Sequence[Message], spell: Callable[[int], str]) -> str:
    """The prompt as `edge.inputs.prompt` cuts it, as one text: llama.cpp's mark stands for an image, ids are spelled
    out."""
    first, *rest = conversation
    system = first["content"] if first["role"] == "system" else None
    turns: list[Turn] = []
    for message in conversation if system is None else rest:
        if message["role"] == "user":
            turns.append(Turn.about(message["content"].replace(MEDIA, ""), (_IMAGE,) * message["content"].count(MEDIA)))
        else:
            turns[-1] = replace(turns[-1], answer=message["content"])
    said = parts(spec, turns, system)
    return "".join(MEDIA if part is _IMAGE else spell(part) if isinstance(part, int) else str(part) for part in said)
