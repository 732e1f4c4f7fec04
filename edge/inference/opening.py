"""Opening of a bundle as its plan says; and anew after a card failed, on the CPU where that may take its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

from edge.bundle import checksums
from edge.bundle.manifest import MANIFEST, Bundle
from edge.errors import ProviderError
from edge.inference import constant_prefix, flash
from edge.inference.loader import ModelLoader, in_background
from edge.inputs.tokenizer import Tokenizer
from edge.planning.plan import Plan
from edge.types import ComputeUnits, OpenOptions

ON_THE_CPU = "ask again: the CPU computes from now on"
ON_THE_CARD = "ask again, and the card is tried anew; with --provider cuda,cpu the CPU would take its place"


@dataclass
class Opening:
    """`plan` is the one of now; `spare` makes the one that the CPU alone carries out, None where the card must."""

    bundle: Bundle
    plan: Plan
    spare: Callable[[], Plan] | None
    units: ComputeUnits = "all"
    debug: bool = False
    flash: bool | None = None  # of a decoder on a card; None: where it is proven
    started: float = field(default_factory=perf_counter)
    warm: tuple[Path, ...] = ()  # what was shipped with the bundle, and may be used here

    def first(self) -> ModelLoader:
        """Until images can be encoded; where the CPU may take a card's place, until the decoder is there, too. Raises
        EngineError."""
        loader = self.open()
        try:
            loader.vision()
            if self.spare:
                loader.decoder()
            loader.raise_known_failure()  # before an image is encoded
        except ProviderError as error:
            if self.spare is None:
                raise
            loader.let_go()
            self.leave_the_card(error)
            return self.first()
        return loader

    def tokenizer(self) -> Future[Tokenizer]:
        """Read in the background, once it is known to be what was exported. A large vocabulary takes long."""

        def read() -> Tokenizer:
            checksums.check(self.bundle, [self.bundle.manifest.tokenizer])
            return Tokenizer.open(self.bundle.file(self.bundle.manifest.tokenizer))

        return in_background(read)

    def open(self) -> ModelLoader:
        plan = self.plan
        options = OpenOptions(
            threads=plan.threads,
            context=plan.context,
            debug=self.debug,
            cache=plan.cache,
            units=self.units,
            isa=plan.isa,
            gpu_layers=plan.gpu_layers,
            flash=flash.proven(self.bundle.path, plan) if self.flash is None else self.flash,
            bundle=_sha256(self.bundle) if plan.on_card else "",
            warm=self.warm,
            begun=constant_prefix.begun(self.bundle, plan, self.warm),
        )
        return ModelLoader(self.bundle, plan, options, self.started)

    def after_failure(self, error: ProviderError) -> str:
        """Plans what comes next, and says it as a hint. Nothing is opened."""
        self.started = perf_counter()
        if self.spare is None:
            return ON_THE_CARD
        self.leave_the_card(error)
        return ON_THE_CPU

    def leave_the_card(self, error: ProviderError) -> None:
        assert self.spare is not None
        plan, self.spare = self.spare(), None
        self.plan = replace(plan, notes=(*plan.notes, f"on the CPU: {error.message}"))


def _sha256(bundle: Bundle) -> str:
    return hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
