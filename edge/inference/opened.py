"""What a session has opened: the parts, and the text generator once the decoder is there; anew after a card failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edge.bundle.manifest import Bundle
from edge.errors import EdgeError, ProviderError, UsageError
from edge.inference.generate import TextGenerator
from edge.inference.kept import Kept
from edge.inference.loader import ModelLoader
from edge.inference.opening import Opening
from edge.inputs.tokenizer import Tokenizer
from edge.planning.plan import Plan
from edge.types import Graph


class Opened:
    def __init__(self, opening: Opening, loader: ModelLoader, tokenizer: Tokenizer, load_ms: float) -> None:
        self.load_ms = load_ms  # until all was open, once the decoder was waited for; until images could be encoded
        self.held: TextGenerator | None = None  # made when the decoder is there
        self._opening = opening
        self._tokenizer = tokenizer
        self._failed = False  # the card did, and nothing that it holds is used any more
        self._loader: ModelLoader | None = loader  # None: closed
        self._kept: Kept | None = None

    @property
    def bundle(self) -> Bundle:
        return self._opening.bundle

    @property
    def plan(self) -> Plan:
        return self._opening.plan

    @property
    def warm(self) -> tuple[Path, ...]:
        return self._opening.warm

    def loader(self) -> ModelLoader:
        """Raises UsageError when it is closed, and EngineError where a card failed and nothing opens in its place."""
        if self._loader is None:
            raise UsageError("the session is closed", hint="edge.load(path) opens another")
        if self._failed:
            self._loader = self._opening.open()
            self._failed = False
        return self._loader

    def check(self) -> None:
        """Waits for the hashes of all that was opened. Raises BundleError."""
        self.loader().check()

    def text(self) -> TextGenerator:
        """Waits for the decoder. Raises EngineError, and BundleError on a damaged file."""
        loader = self.loader()
        if self.held is None:
            try:
                decoder, opened_ms = loader.decoder()
            except EdgeError:
                loader.check()  # a damaged file explains more than what an engine says of it
                raise
            self.load_ms = max(self.load_ms, opened_ms)
            prompt = self.bundle.manifest.spec.prompt
            self.held = TextGenerator(decoder, prompt, self._tokenizer, self.plan.context, loader.check)
            if self._kept is not None:
                self.held.keep(self._kept)
        return self.held

    def vision(self) -> tuple[Graph, ...]:
        """The parts that see. Where they and the decoder are open one at a time, that is closed."""
        loader = self.loader()
        if loader.one_at_a_time and self.held is not None:
            self.held.release()  # ends an answer that is still being read: its decoder is closed
            self.held = None
        return loader.vision()

    def keep(self, kept: Kept) -> None:
        """Where conversations go that wait for their next question."""
        self._kept = kept
        if self.held is not None:
            self.held.keep(kept)

    def forget(self) -> None:
        """What conversations have left."""
        if self._kept is not None:
            self._kept.clear()

    def close(self) -> None:
        """Let the engines and their memory go."""
        self._loader, self.held = None, None

    @contextlib.contextmanager
    def recovering(self) -> Iterator[None]:
        """A card that fails ends what it was doing, by one error. What it held is let go of: the next question opens
        all anew, on the CPU where that was allowed."""
        try:
            yield
        except ProviderError as error:
            if self._loader is None:
                raise
            self._loader.let_go()
            self.held, self._failed = None, True
            self.forget()
            raise ProviderError(error.message, hint=self._opening.after_failure(error)) from error
