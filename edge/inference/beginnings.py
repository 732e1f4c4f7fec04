"""What the answers of one session begin with: the constant prefix of the system text that was used last."""

from __future__ import annotations

import contextlib

from edge.errors import EngineError
from edge.inference.constant_prefix import ConstantPrefix
from edge.inference.opened import Opened
from edge.inputs.tokenizer import Tokenizer
from edge.types import Tokens


class Beginnings:
    def __init__(self, opened: Opened, tokenizer: Tokenizer) -> None:
        self._opened = opened
        self._tokenizer = tokenizer
        self._last: ConstantPrefix | None = None
        self._answered: ConstantPrefix | None = None  # of the last answer, if it may be kept
        self._whole = False

    def of(self, system: str | None) -> ConstantPrefix:
        """Raises UsageError on a system text that the prompt has no place for."""
        found, plan = self._last, self._opened.plan
        if found is None or found.system != system or found.plan is not plan:
            found = self._last = ConstantPrefix(self._opened.bundle, plan, self._tokenizer, system, self._opened.warm)
        return found

    def taken(self, constant: ConstantPrefix | None) -> ConstantPrefix | None:
        """What the next answer may take up: nothing right after `forget`."""
        taken, self._whole = None if self._whole else constant, False
        return taken

    def answered(self, constant: ConstantPrefix | None) -> None:
        """By an answer that has ended: the decoder begins with it. None: nothing of it may be written down."""
        self._answered = constant

    def warm(self, system: str | None) -> None:
        """Have the decoder hold it, and the user's cache, too. Raises EngineError, BundleError and UsageError."""
        text, constant = self._opened.text(), self.of(system)
        prefix = text.begin(constant) if constant.ids else None
        self._opened.check()
        if prefix is not None:
            constant.keep(prefix)

    def keep(self) -> None:
        """In the user's cache; the rest of the last conversation is forgotten."""
        constant, self._answered = self._answered, None
        if constant is None or constant.complete or self._opened.held is None:
            return
        with contextlib.suppress(EngineError):
            if (prefix := self._opened.held.snapshot([Tokens(constant.ids)])) is not None:
                constant.keep(prefix)

    def forget(self) -> None:
        """Nothing is taken up for the next answer."""
        self._whole = True
