"""The benchmark runner: starts the measuring processes one after another and makes rows of their events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge import __version__
from edge.bench import results, schema
from edge.bench.card_sensors import CardSensors
from edge.bench.monitor import Monitor, Span
from edge.bench.process import Event, events, started, understood
from edge.bench.request import Request, raised
from edge.bench.schema import Row
from edge.bench.sensors import Sensors
from edge.bundle import trusted_keys, vouching
from edge.bundle.manifest import Bundle
from edge.devices import DeviceProfile, detect, measured
from edge.engines import engine_named, matmul_lender
from edge.errors import EdgeError, EngineError
from edge.planning.fit import reach
from edge.planning.sizes import bytes_per_token, sizes

_BACKWARDS = "the clock stood still or went backwards"


def bench(requests: Sequence[Request], sensors: Sensors | None = None) -> Iterator[Row | EdgeError]:
    """Row after row as they are measured, and what went wrong with one request in its place: the others go on.

    Ctrl-C, and a kill that raises SystemExit, give the row that was begun, of the repetitions there are, and are raised
    then. Raises BundleError before anything is measured when one of the bundles is none.
    """
    bundles = [Bundle.open(request.bundle) for request in requests]
    requests = [*map(_bounded, requests)]
    here = measured(detect(), matmul_lender)
    for request, bundle in zip(requests, bundles, strict=True):
        try:
            yield from _Run(request, bundle, here, sensors or Sensors()).rows()
        except EdgeError as error:
            yield error


def prove(request: Request) -> dict[str, Any]:
    """`edge.verify.Report` as JSON, of a process of its own: a library that ends it ends nothing else. Raises EdgeError
    where a stage cannot run at all."""
    proving = _bounded(replace(request, purpose="prove"))
    with started(proving) as child:
        found = [_proof(event) for event in events(child, proving)]
    if len(found) != 1:
        raise EngineError(f"the measuring process told of {len(found)} proofs", hint="add --debug")
    return found[0]


def _bounded(request: Request) -> Request:
    """Its process is bounded where nothing vouches for the bundle. Raises BundleError on a wrong signature."""
    keys = trusted_keys.read()
    return replace(request, bounded=vouching.voucher(Path(request.bundle), keys) is None)


def _proof(event: Event) -> Event:
    """Raises what the process raised."""
    if event["event"] == "error":
        raise raised(event)
    with understood():
        report: Event = event["report"]
        if not all(type(told["ok"]) is bool for told in (report, *report["rows"])):
            raise ValueError("a report that does not say what holds")
        return {**report, "rows": [{**row, "stage": str(row["stage"])} for row in report["rows"]]}


class _Run:
    """One request: a process for all rows but loading, then one for each time that the bundle is loaded."""

    def __init__(self, request: Request, bundle: Bundle, here: DeviceProfile, sensors: Sensors) -> None:
        self.request, self.here, self.sensors = request, here, sensors
        self.facts = _facts(request, bundle, here)
        self.busy: list[Span] = []
        self.pending: list[Event] = []
        self.notes: list[str] = []  # of the plan: what stays on the CPU
        self.watch: Monitor | None = None

    def rows(self) -> Iterator[Row | EdgeError]:
        with understood():
            for row in self._rows():
                yield row if isinstance(row, EdgeError) else results.require(row, "what the measuring process said")

    def _rows(self) -> Iterator[Row | EdgeError]:
        try:
            card = CardSensors() if self.here.graphics.card else None
            with started(self.request) as child, Monitor(self.sensors, child.pid, card=card) as self.watch:
                for event in events(child, self.request):
                    yield from self._take(event)
                yield from self._finished()
                if (held := self.watch.card(self.busy).get("card_bytes")) and self.facts.get("providers"):
                    yield schema.memory(round(held), {**self.facts, "test_time": _now()}, "peak card memory")
            self.watch = None
            for _ in range(self.request.repetitions):
                loading = replace(self.request, purpose="load")
                with started(loading) as child:
                    for event in events(child, loading):
                        yield from self._take(event)
        except (KeyboardInterrupt, SystemExit, EdgeError):
            yield from self._finished()
            raise
        yield from self._finished()

    def _take(self, event: Event) -> Iterator[Row | EdgeError]:
        kind = event.pop("event")
        if kind == "sample":
            if self.pending and self.pending[0]["test"] != event["test"]:
                yield from self._finished()
            self.pending.append(event)
        elif kind == "ready":
            self.facts.update(_planned(event, self.here))
            self.notes = event["plan"].get("notes", [])
        elif kind == "peak":
            self.facts["peak_bytes"] = event["bytes"]
        elif kind == "agreement":
            self.facts.update(event)
            if (peak := self.facts.pop("peak_bytes")) is not None:
                yield schema.memory(peak, self.facts)
        else:
            raise raised(event)

    def _finished(self) -> Iterator[Row | EdgeError]:
        """The row of the samples that were gathered."""
        taken, self.pending = self.pending, []
        samples = [sample for sample in taken if sample["ns"] > 0]
        if not samples:
            if taken:
                yield EngineError(f"{taken[0]['test']}: {_BACKWARDS} at every repetition", hint="measure again")
            return
        facts = {**self.facts, "test_time": _now()}
        if self.watch is None:
            row = schema.timed(samples, facts)
        elif "tokens" in samples[0]:
            windows = [_window(sample, samples[0]["start"], self.watch) for sample in samples]
            row = {**schema.sustained(samples[0]["test"], windows, facts), **self._watched(self.watch, samples)}
        else:
            row = {**schema.timed(samples, facts), **self._watched(self.watch, samples)}
        if lost := len(taken) - len(samples):
            row["warnings"] = [*row.get("warnings", ()), f"{_BACKWARDS}: {lost} repetitions were left out"]
        yield row

    def _watched(self, watch: Monitor, samples: Sequence[Event]) -> Row:
        spans = [_span(sample) for sample in samples]
        self.busy.extend(spans)
        found = {
            "energy_j": watch.energy(spans),
            "temp_c": watch.temperature(spans),
            "clock_mhz": watch.clock(spans),
            "warnings": [*self.notes, *watch.warnings(self.busy)] or None,
            **(watch.card(spans) if self.facts.get("providers") else {}),
        }
        return {name: value for name, value in found.items() if value is not None}


def _span(sample: Event) -> Span:
    return (sample["start"], sample["start"] + sample["ns"])


def _window(sample: Event, start: int, watch: Monitor) -> dict[str, float]:
    span = _span(sample)
    found = {
        "t_s": round((span[1] - start) / 1e9, 3),
        "ts": 1e9 * sample["tokens"] / sample["ns"],
        "temp_c": watch.temperature([span]),
        "clock_mhz": watch.clock([span]),
    }
    return {name: value for name, value in found.items() if value is not None}


def _facts(request: Request, bundle: Bundle, here: DeviceProfile) -> Row:
    """What a row says of the bundle and of this machine; no fact that is not known."""
    manifest = bundle.manifest
    cache = {} if request.cache is None else {"type_k": request.cache, "type_v": request.cache}
    return {
        "schema": schema.SCHEMA,
        "build_commit": f"edge-vlm {__version__}",
        "cpu_info": here.name,
        "device": here.name,
        "model_filename": request.bundle,
        "model_type": f"{manifest.name} {'+'.join(part.scheme for part in manifest.parts)}",
        "model_size": sum(part.size for part in manifest.parts),
        "recipe": manifest.recipe,
        "test_time": _now(),
        **cache,
        "memory_limit_bytes": here.memory_bytes,
        "bytes_per_token": round(bytes_per_token(manifest.part("decoder"), sizes(manifest, manifest.parts))),
    }


def _planned(event: Event, here: DeviceProfile) -> Row:
    parts = event["plan"]["parts"]
    ((engine, provider),) = ((part["engine"], part["provider"]) for part in parts if "decoder" in part["covers"])
    bandwidth = reach(here, engine_named(engine), provider).speed.bandwidth
    on_card = any(part["provider"] != "cpu" for part in parts)
    return {
        "backends": ",".join(dict.fromkeys(_backend(part) for part in parts)),
        **({"providers": [part["provider"] for part in parts]} if on_card else {}),
        **({"n_gpu_layers": layers} if (layers := event["plan"]["gpu_layers"]) else {}),
        "kernels": event["kernels"],
        "n_threads": event["plan"]["threads"],
        "context": event["plan"]["context"],
        "prompt_tokens": event["prompt_tokens"],
        "image_tokens": event["image_tokens"],
        **({"bandwidth": round(bandwidth)} if bandwidth else {}),
    }


def _backend(part: Event) -> str:
    """The engine, and what it computes with where that is not the CPU."""
    engine, provider = part["engine"], part["provider"]
    return str(engine) if provider == "cpu" else f"{engine} {provider}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
