"""Prediction of memory and speed on a device, each figure with what it assumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edge.bundle.manifest import Manifest
from edge.devices import DeviceProfile
from edge.engines import EngineInfo, installed_engines
from edge.planning import roofline
from edge.planning.memory import BATCH, ITEMS, memory
from edge.planning.plan import Choice, Plan, needed, plan
from edge.planning.roofline import GRAPHICS, PROCESSOR, READING, Speed, Utilisation, Work
from edge.planning.sizes import Sizes, bytes_per_token, cache_item
from edge.types import CacheKind, Provider

QUESTION = 46  # tokens of a short question with its template, where a manifest does not tell
WIDE = ("fp32", "fp16", "f16", "bf16", "w16a16", "w4a16")  # schemes whose products are floating-point ones
ANSWER = 64  # tokens: decoding is predicted for the middle of an answer of so many


@dataclass(frozen=True)
class Prediction:
    """`value` None: the device's profile does not tell what it would be computed from."""

    name: str
    value: float | None
    unit: str
    assumes: str


@dataclass(frozen=True)
class Fit:
    bundle: str
    device: str
    plan: Plan
    rows: tuple[Prediction, ...]

    def value(self, name: str) -> float | None:
        return next(row.value for row in self.rows if row.name == name)

    def to_json(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.rows]
        return {"bundle": self.bundle, "device": self.device, "fits": True, "plan": self.plan.to_json(), "rows": rows}


def fit(manifest: Manifest, device: DeviceProfile, *, context: int = 0, cache: CacheKind | None = None) -> Fit:
    """Predict. Raises EngineError, naming what would fit, when the device's memory is too small."""
    engines = usable(device)
    chosen = plan(manifest, device, engines, context=context, cache=cache)
    need = needed(manifest, chosen.choices, engines)
    prompt = prompt_tokens(manifest)
    answer = min(need.sizes.spec.context, max(BATCH, prompt + ANSWER))
    short = memory(need, min(answer, chosen.context), chosen.cache, chosen.one_at_a_time)
    held = f"weights {_gb(need.vision + need.decoder)}, libraries {_gb(short.runtime)}"
    full = memory(need, chosen.context, chosen.cache, chosen.one_at_a_time)
    size = sum(file.bytes for file in manifest.files())
    rows = (
        Prediction("bundle", size, "B", "all files"),
        Prediction("memory", device.memory_bytes, "B", _source(device)),
        Prediction(
            "peak memory, one answer", short.peak, "B", "; ".join([held, _kept(short.cache, answer), *chosen.given_up])
        ),
        Prediction("peak memory, full context", full.peak, "B", _kept(full.cache, chosen.context)),
        *times(need.sizes, device, chosen.choices, engines, prompt, chosen.cache),
    )
    return Fit(manifest.name, device.name, chosen, rows)


def answer_seconds(found: Fit) -> float | None:
    """Of a whole answer of ANSWER tokens; None where a figure of it is not known."""
    first, rate = found.value("first token"), found.value("decode")
    return None if first is None or not rate else first + ANSWER / rate


def better(found: Mapping[str, Fit]) -> str | None:
    """The recipe whose answers are predicted to end first; None where nothing is known."""
    known = {name: seconds for name, fit in found.items() if (seconds := answer_seconds(fit)) is not None}
    return min(known, key=lambda name: known[name]) if known else None


def usable(device: DeviceProfile) -> tuple[EngineInfo, ...]:
    """The engines that a device lists, as if they were installed there; of this machine, those that are."""
    found = installed_engines()
    if device.recognised:
        return found
    listed = {name for names in device.engines.values() for name in names}
    return tuple(replace(engine, installed=True, unfit=None) for engine in found if engine.name in listed)


def prompt_tokens(manifest: Manifest) -> int:
    """Of the golden question about the golden image."""
    views = manifest.golden_prompt.get("views") or {"image_tokens": manifest.spec.prompt.image_tokens}
    rows = views["image_tokens"] if manifest.sees else 0
    segments = views.get("segments") or manifest.golden_prompt.get("segments")
    return rows + (sum(len(ids) for ids in segments if ids is not None) if segments else QUESTION)


def times(
    sizes: Sizes,
    device: DeviceProfile,
    choices: Sequence[Choice],
    engines: Sequence[EngineInfo],
    prompt: int,
    cache: CacheKind | None,
) -> tuple[Prediction, ...]:
    """Seconds of seeing, of reading a prompt of so many positions, of both; and tokens a second after it."""
    infos = {engine.name: engine for engine in engines}
    (speaking,) = (choice for choice in choices if "decoder" in choice.part.covers)
    seeing = next((choice for choice in choices if "vision" in choice.part.covers), None)
    part = speaking.part
    weights = bytes_per_token(part, sizes)
    engine = infos[speaking.engine]
    item = cache_item(part) or (ITEMS[cache or "f16"] if engine.caches else engine.item)
    rows = []
    seen: float | None = 0.0
    if seeing:
        work = roofline.encode(sizes, seeing.part.scheme not in WIDE)
        there = reach(device, infos[seeing.engine], seeing.provider)
        seen = roofline.seconds(work, there.speed, there.use.vision, there.use)
        how = f"{sizes.views} views: " * (sizes.views > 1) + _computed(work, there, there.use.vision)
        rows.append(Prediction("vision", seen, "s", how))
    there = reach(device, engine, speaking.provider)
    work = roofline.prefill(sizes, prompt, part.scheme not in WIDE, weights)
    read = roofline.seconds(work, there.speed, there.use.prefill, there.use)
    how = f"{prompt} positions: {_computed(work, there, there.use.prefill)}"
    rows.append(Prediction("prompt", read, "s", how))
    first = None if seen is None or read is None else seen + read
    rows.append(Prediction("first token", first, "s", "vision and prompt, all loaded"))
    work = roofline.step(sizes, prompt + ANSWER // 2, weights, item)
    token = roofline.token_seconds(work, there.speed, there.use)
    moved = f"{_gb(work.bytes)} a token, {_gb(work.bytes - weights)} of it KV cache"
    how = f"{moved}; at {there.use.decode:.0%} of {_rate(there.speed.bandwidth)} ({there.bandwidth}){there.where}"
    rows.append(Prediction("decode", None if token is None else 1 / token, "tokens/s", how))
    return tuple(rows)


@dataclass(frozen=True)
class Reach:
    """What computes for an engine on a device, how fast that is, and what the engine's kernels reach of it."""

    speed: Speed
    use: Utilisation
    bandwidth: str  # how that is known
    where: str = ""


def reach(device: DeviceProfile, engine: EngineInfo, provider: Provider = "cpu") -> Reach:
    graphics = device.known("gpu_fp16")
    if provider != "cpu" and graphics:
        peak = 1e12 * graphics.value
        bandwidth, how = _bandwidth(device, GRAPHICS)
        return Reach(Speed(bandwidth, peak, peak), GRAPHICS, how, ", on the graphics processor")
    int8, fp32 = (device.known(name) for name in ("int8", "fp32"))
    bandwidth, how = _bandwidth(device, PROCESSOR)
    speed = Speed(bandwidth, 1e9 * int8.value if int8 else None, 1e9 * fp32.value if fp32 else None)
    return Reach(speed, replace(PROCESSOR, **engine.reaches), how)


def _bandwidth(device: DeviceProfile, use: Utilisation) -> tuple[float | None, str]:
    """Bytes/s that reading reaches, and how that is known. What decoding moved there tells most."""
    reached, theoretical, measured = (
        device.known(f"bandwidth_{name}") for name in ("reached", "theoretical", "measured")
    )
    if use is GRAPHICS and theoretical:
        return 1e9 * theoretical.value, "theoretical"
    if device.kind == "jetson" and measured:  # what is published there is of the graphics processor
        return 1e9 * measured.value, "measured, of one core"
    if reached:
        how = "from published decoding" if reached.estimate else "measured, of a product with 4-bit weights"
        return 1e9 * reached.value / use.decode, how
    if theoretical:
        return 1e9 * theoretical.value * READING, f"{READING:.0%} of the theoretical"
    return (1e9 * measured.value, "measured") if measured else (None, "not known")


def _computed(work: Work, there: Reach, share: float) -> str:
    linear, kind = (work.int8, "GOP int8") if work.int8 else (work.fp32, "GFLOP")
    return (
        f"{linear / 1e9:,.3g} {kind} at {share:.0%} and {work.attention / 1e9:,.2g} GFLOP of attention "
        f"at {there.use.attention:.0%} of the peak {_peaks(work, there.speed)}{there.where}"
    )


def _peaks(work: Work, speed: Speed) -> str:
    peaks = [f"{peak / 1e9:,.0f} {name}" for name, peak in (("GOPS", speed.int8), ("GFLOPS", speed.fp32)) if peak]
    return f"({', '.join(peaks if work.int8 else peaks[1:]) or 'not known'})"


def _rate(bandwidth: float | None) -> str:
    return f"{bandwidth / 1e9:,.1f} GB/s" if bandwidth else "a bandwidth that is not known"


def _kept(count: int, positions: int) -> str:
    return f"KV cache of {positions} positions {_gb(count)}"


def _source(device: DeviceProfile) -> str:
    if device.recognised:
        return "free now, on this machine"
    figure = device.known("usable_memory")
    return figure.source if figure else "the profile's"


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
