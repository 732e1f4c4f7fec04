"""Which option an answer names, by rule alone.

The rules are those of MMBench's own toolkit when it matches exactly: a letter that stands alone, else the text of one
option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

REFUSED = "Z"  # no option: the answer refuses, or says so itself
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_AROUND = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LATE = 5  # of the last words; a letter further ahead may be an article
_SAID = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of an option, `Z` of a refusal, or None where the rules find none or several. `options`: by letter."""
    return _by_letter(answer, options) or _by_text(answer, options)


def _by_letter(answer: str, options: Mapping[str, str]) -> str | None:
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    words = answer.translate(_AROUND).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - _LATE:
        return named[0]
    if not named and REFUSED in words:
        return REFUSED
    said = _SAID.search(answer)
    return said[1].upper() if said and said[1].upper() in options else None


def _by_text(answer: str, options: Mapping[str, str]) -> str | None:
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, option in options.items() if option.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None
