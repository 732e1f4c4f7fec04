"""Lets formats write components, and judges each by its order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from edge import plugins
from edge.bundle.manifest import ROLES, File, Part, describe
from edge.recipes import GPTQ
from exporters import quantizer, targets, widening
from exporters.formats import NOTHING, Format, Job, Measured, Written
from exporters.judge import Cost, Judge
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.order import Order, Stages

M = TypeVar("M", Encoder, LanguageModel)


class Writer:
    """Lets formats write components into a folder, and keeps what came of it."""

    def __init__(self, order: Order, folder: Path, progress: Stages) -> None:
        self.order, self.folder, self.progress = order, folder, progress
        self.parts: list[Part] = []
        self.companions: list[File] = []

    def check(self, *components: Component) -> None:
        for component in components:
            job = self._job(component, widened=self.order.widened.get(component.role, {}))
            widening.check(job, self.order.targets[component.role].format)
            if check := getattr(self._format(component), "check", None):
                check(job)

    def load(self, component: Component, kind: type[M]) -> M:
        self.progress(self._stage(component), 0.0)
        module = component.load(self.order.checkpoint.weights)
        assert isinstance(module, kind)
        return module

    def judge(
        self,
        component: Component,
        module: Encoder | LanguageModel,
        samples: Sequence[Tensor],
        exact: Sequence[Tensor],
    ) -> Judge:
        role, order = component.role, self.order
        return Judge(role, module, samples, exact, order.targets[role], order.widened.get(role), explain=order.explain)

    def held(self, component: Component, judge: Judge, again: Callable[[], Encoder | LanguageModel]) -> Cost:
        """What it costs. Raises ParityError where that is too much; `again` makes the module as it was judged."""
        cost = judge.cost()
        judge.require(cost, self.order.max_loss, component.role, again)
        return cost

    def encoder(
        self,
        component: Component,
        module: Encoder,
        samples: Iterable[Tensor] = (),
        widened: Mapping[str, str] = NOTHING,
    ) -> None:
        job = self._job(component, samples=self._samples(component, samples), widened=widened)
        self._keep(component, self._format(component).encoder(job, module), widened)

    def decoder(
        self,
        component: Component,
        module: LanguageModel,
        sequences: Sequence[Tensor],
        matters: Mapping[str, Tensor],
        measured: Measured | None,
        widened: Mapping[str, str],
    ) -> None:
        """sequences: rows `[1, S, hidden]` of the golden sample, then those of the calibration."""
        job = self._job(
            component,
            samples=self._samples(component, sequences),
            importance=matters,
            measured=measured,
            widened=widened,
        )
        how = {}
        if self.order.quantize == GPTQ:
            format, stage = self.order.targets[job.role].format, f"{job.role}: {GPTQ}"
            job = quantizer.rounded(job, format, module, sequences[1:], lambda done: self.progress(stage, done))
            how["quantize"] = GPTQ
        self._keep(component, self._format(component).decoder(job, module), widened, how)

    def finish(self) -> None:
        """Each format once more, with all parts that it wrote."""
        for format in dict.fromkeys(part.format for part in self.parts):
            if finish := getattr(plugins.load(targets.FORMATS, format), "finish", None):
                mine = [part for part in self.parts if part.format == format]
                done = finish(mine, self.folder, self.order.options.get(format, {}))
                changed = dict(zip([part.covers for part in mine], done.parts, strict=True))
                self.parts = [changed.get(part.covers, part) for part in self.parts]
                self.companions += self._described(done.companions)

    def _keep(
        self,
        component: Component,
        written: Written,
        widened: Mapping[str, str],
        how: Mapping[str, str] = NOTHING,
    ) -> None:
        """how: what every format was told of it, for the manifest."""
        files, target = self._described(written.files), self.order.targets[component.role]
        if component.role not in ROLES:
            self.companions += files
        else:
            part = Part(
                covers=component.covers,
                format=target.format,
                scheme=target.scheme,
                files=tuple(files),
                inputs=written.inputs,
                outputs=written.outputs,
                tolerance=targets.schemes(target.format)[component.role][target.scheme],
                weights=component.weights,
                options={**written.options, **({"widened": dict(widened)} if widened else {}), **how},
                details=dict(written.details),
            )
            self.parts.append(part)
        self.companions += self._described(written.companions)

    def _job(self, component: Component, **more: Any) -> Job:
        target = self.order.targets[component.role]
        return Job(
            component,
            target.scheme,
            self.folder,
            self.order.checkpoint,
            lambda done: self.progress(self._stage(component), done),
            options=self.order.options.get(target.format, {}),
            **more,
        )

    def _format(self, component: Component) -> Format:
        format: Any = plugins.load(targets.FORMATS, self.order.targets[component.role].format)
        return format

    def _samples(self, component: Component, samples: Iterable[Tensor]) -> tuple[Tensor, ...]:
        facts = plugins.facts(targets.FORMATS, self.order.targets[component.role].format)
        return tuple(islice(samples, facts.get("SAMPLES", 0)))

    def _described(self, paths: Iterable[Path]) -> list[File]:
        return [describe(self.folder, path) for path in paths]

    def _stage(self, component: Component) -> str:
        return f"{component.role}: {self.order.targets[component.role]}"
