"""Manifests of schema 1, as schema 2 spells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.errors import BundleError

TEXT, MARK = "{text}", "<image>"
_SHARED = ("default_system", "image_tokens", "bos_id", "stop_ids", "stop_strings")  # with schema 2
ONLY = ("system", "user", "assistant", "end_id")  # fields of a prompt that schema 2 does not have
FIELDS = (*ONLY, "generation", "image", *_SHARED)


def upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of schema 1 with the sections of schema 2. Raises BundleError on a damaged one."""
    prompt = data.get("prompt")
    return {**data, "prompt": _prompt(prompt) if isinstance(prompt, Mapping) else prompt}


def _prompt(told: Mapping[str, Any]) -> dict[str, Any]:
    """`system`, `user`, `assistant` and `image` were texts with one mark each."""
    try:
        return prompt(told)
    except ValueError as error:
        raise BundleError(f"manifest.json: 'prompt' {error}", hint="export the bundle again") from error


def prompt(told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a PromptSpec from those of schema 1's; those that both have stay as they are.

    Each text around an image or after an id was tokenised as one at the start is. Raises ValueError, which names the
    field that is missing or no text with its mark.
    """
    system, user = _around(told, "system", TEXT, "system"), _around(told, "user", TEXT, "content")
    asked = {"first": user, "after_system": [*system, *user], "later": user}
    return {
        "question": asked,
        "image_question": None,
        "image": _around(told, "image", MARK, "image"),
        "answer": _around(told, "assistant", TEXT, "answer"),
        "generation": _text(_of(told, "generation")),
        "restarts": ["bos", "ids", "image"],
        "end_ids": [_of(told, "end_id", int)],
        **{name: told[name] for name in (*_SHARED, "golden") if name in told},
    }


def _around(told: Mapping[str, Any], field: str, mark: str, slot: str) -> list[dict[str, Any]]:
    text = _of(told, field)
    if text.count(mark) != 1:
        raise ValueError(f"has {field} {text!r}, which holds {mark} {text.count(mark)} times, not once")
    before, _, after = text.partition(mark)
    return [*_text(before), {"slot": slot}, *_text(after)]


def _text(text: str) -> list[dict[str, Any]]:
    return [{"text": text}] if text else []


def _of(told: Mapping[str, Any], field: str, kind: type = str) -> Any:
    if field not in told:
        raise ValueError(f"lacks {field}")
    if type(value := told[field]) is not kind:
        raise ValueError(f"has {field} {value!r}")
    return value
