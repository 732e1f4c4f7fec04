"""What a file's chat template says, against the prompt that the model learned.

A template is a program of whoever made the file: it is rendered in jinja2's sandbox, in a process of its own whose time
and memory are bounded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from edge.prompt import MARK, TEXT
from edge.spec import PromptSpec
from exporters.gguf.template import MEDIA

Message = Mapping[str, str]
_SECONDS, _PATIENCE = 10, 60  # of the processor's time, and of the clock's: the machine may be busy
_LONGEST = 1 << 16  # characters of a template; what a model is told in thousands
_CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": f"{MEDIA}What is this?"},),
    (
        {"role": "user", "content": f"{MEDIA}Who is she?"},
        {"role": "assistant", "content": "A pilot."},
        {"role": "user", "content": "Why?"},
    ),
)
_SCRIPT = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, ValueError, OSError):  # Windows has none; the time is bounded from outside too
    pass
from jinja2.sandbox import ImmutableSandboxedEnvironment
asked = json.load(sys.stdin)
try:
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(asked["template"])
    said = [
        template.render(messages=c, add_generation_prompt=True, bos_token=asked["bos"], eos_token=asked["eos"])
        for c in asked["conversations"]
    ]
    json.dump([text[:LONGEST] for text in said], sys.stdout)
except Exception as error:
    json.dump(f"{type(error).__name__}: {error}"[:200], sys.stdout)
"""


def difference(template: str, spec: PromptSpec, bos: str, eos: str) -> str | None:
    """Where what the template renders leaves the prompt of `spec`, in words; None where it does not.

    `bos` may stand at its start: the tokenizer puts it there once. Raises ModuleNotFoundError without jinja2.
    """
    if find_spec("jinja2") is None:
        raise ModuleNotFoundError("jinja2 is not installed", name="jinja2")
    if len(template) > _LONGEST:
        return f"{len(template)} characters long"
    rendered = _render(template, bos, eos)
    if isinstance(rendered, str):
        return f"cannot be rendered: {rendered}"
    for conversation, said in zip(_CONVERSATIONS, rendered, strict=True):
        wanted, said = expected(spec, conversation, eos), said.removeprefix(bos)
        if said != wanted:
            at = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), len(wanted))
            at = min(at, len(said))
            start = max(0, at - 12)
            return f"says {said[start : at + 12]!r} for {wanted[start : at + 12]!r}"
    return None


def expected(spec: PromptSpec, conversation: Sequence[Message], eos: str) -> str:
    """The prompt as `edge.prompt` cuts it, as one text: llama.cpp's mark stands for a picture, `eos` ends an answer."""
    image = spec.image.replace(MARK, MEDIA)
    text = spec.system.replace(TEXT, spec.default_system)
    for message in conversation:
        content = message["content"].replace(MEDIA, image)
        if message["role"] == "user":
            text += spec.user.replace(TEXT, content)
        else:
            text += spec.assistant.replace(TEXT, content) + eos
    return text + spec.generation


def _render(template: str, bos: str, eos: str) -> list[str] | str:
    """One text a conversation, or why there is none."""
    script = f"SECONDS, LONGEST = {_SECONDS}, {_LONGEST}\n{_SCRIPT}"
    asked = json.dumps({"template": template, "conversations": _CONVERSATIONS, "bos": bos, "eos": eos})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", script], input=asked, capture_output=True, text=True, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {_PATIENCE} s"
    try:
        found: list[str] | str = json.loads(done.stdout)
    except ValueError:
        return f"it ends the process ({done.returncode})"
    return found
