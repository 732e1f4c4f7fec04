"""Stop strings: ends the text at the first one, however the pieces fall."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Lets text through up to the stop string that is complete first. Text that may yet become one is held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(s for s in strings if s)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What is certain to belong to the answer; nothing once it has stopped."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(s), at) for s in self._strings if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        certain = len(text) - max((_overlap(text, s) for s in self._strings), default=0)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
