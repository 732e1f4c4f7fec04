"""(manifest, device, engines) -> which engine opens which part, with how many threads and how much context. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.bundle import ROLES, Manifest, Part
from edge.devices import DeviceProfile
from edge.errors import EngineError, UsageError
from edge.spec import DecoderSpec

STEP = 256  # a context that was not asked for shrinks by this until it fits
_CACHE_BYTES = 4  # of a key's or value's number, at most


@dataclass(frozen=True)
class EngineInfo:
    name: str
    formats: tuple[str, ...]  # none: it opens any part, and only when it is asked for by name
    package: str
    installed: bool
    version: str | None
    reason: str | None  # why it cannot be used
    unfit: str | None = None  # why no installation helps on this machine
    extra: str | None = None  # what brings its library, if it is not called like the engine

    @property
    def install(self) -> str:
        return f"pip install 'edge-vlm[{self.extra or self.name}]'"

    def refusal(self, formats: Sequence[str]) -> str | None:
        """Why this engine opens no part of these formats; None when it does."""
        if self.formats and not set(formats) & set(self.formats):
            return f"opens {', '.join(self.formats)}"
        if self.unfit:
            return self.unfit
        if not self.installed:
            return f"{self.reason or f'{self.package} is not installed'}: {self.install}"
        return None


@dataclass(frozen=True)
class Choice:
    part: Part
    engine: str


@dataclass(frozen=True)
class Plan:
    choices: tuple[Choice, ...]  # in the order of the roles
    threads: int
    context: int

    def to_json(self) -> dict[str, Any]:
        parts = [
            {
                "covers": list(choice.part.covers),
                "format": choice.part.format,
                "scheme": choice.part.scheme,
                "engine": choice.engine,
            }
            for choice in self.choices
        ]
        return {"parts": parts, "threads": self.threads, "context": self.context}


def plan(
    manifest: Manifest,
    device: DeviceProfile,
    engines: Sequence[EngineInfo],
    *,
    engine: str | None = None,
    threads: int = 0,
    context: int = 0,
) -> Plan:
    """The device's preferred engine for every part; `engine` goes before it for the parts that it opens.

    `threads` 0: the device's. `context` 0: the model's, or as much of it as the memory holds. Raises EngineError when
    no engine opens a part or the memory is too small, UsageError when the call asks for what does not exist.
    """
    if engine is not None and engine not in {e.name for e in engines}:
        raise UsageError(f"no engine {engine!r}", hint="one of: " + ", ".join(e.name for e in engines))
    if threads < 0:
        raise UsageError(f"{threads} threads", hint="0 lets the device decide")
    choices: list[Choice] = []
    for role in ROLES if manifest.sees else ("decoder",):
        if not any(role in choice.part.covers for choice in choices):
            choices.append(_choose(role, manifest, device, engines, engine))
    if engine is not None and all(choice.engine != engine for choice in choices):
        raise _refused(f"{engine} opens no part of {manifest.name}", manifest.parts, engines)
    fitting = _context(manifest.spec.decoder, choices, device.memory_bytes, context)
    return Plan(tuple(choices), threads or device.threads, fitting)


def cache_bytes(spec: DecoderSpec) -> int:
    """What one position of the key-value cache takes."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * _CACHE_BYTES


def _choose(
    role: str, manifest: Manifest, device: DeviceProfile, engines: Sequence[EngineInfo], wanted: str | None
) -> Choice:
    manifest.part(role)  # raises BundleError when there is none
    parts = [part for part in manifest.parts if role in part.covers]
    preferred = device.engines.get(role, ())

    def rank(info: EngineInfo) -> tuple[bool, int]:
        return info.name != wanted, preferred.index(info.name) if info.name in preferred else len(preferred)

    for info in sorted(engines, key=rank):
        for part in parts:
            if (info.formats or info.name == wanted) and info.refusal((part.format,)) is None:
                return Choice(part, info.name)
    raise _refused(f"no engine opens the {role} of {manifest.name}", parts, engines)


def _refused(what: str, parts: Sequence[Part], engines: Sequence[EngineInfo]) -> EngineError:
    formats = tuple(dict.fromkeys(part.format for part in parts))
    candidates = [info for info in engines if info.formats]
    lines = [f"  {info.name}: {refusal}" for info in candidates if (refusal := info.refusal(formats))]
    missing = [
        info for info in candidates if set(formats) & set(info.formats) and not info.installed and not info.unfit
    ]
    return EngineError(
        "\n".join([f"{what} ({', '.join(formats)})", *lines]),
        hint=missing[0].install if missing else "export the bundle again in another --format",
    )


def _context(spec: DecoderSpec, choices: Sequence[Choice], memory: int, asked: int) -> int:
    if not 0 <= asked <= spec.context:
        raise UsageError(f"a context of {asked}", hint=f"the model's is {spec.context}")
    weights = sum(file.bytes for choice in choices for file in choice.part.files)
    room = (memory - weights) // cache_bytes(spec)
    if room >= (asked or spec.context):
        return asked or spec.context
    largest = room // STEP * STEP
    if largest >= STEP and not asked:
        return largest
    least = asked or min(STEP, spec.context)
    raise EngineError(
        f"too little memory: {_mb(memory)} are free, and the weights take {_mb(weights)}, a context of {least} "
        f"{_mb(least * cache_bytes(spec))} more",
        hint=f"a context of {largest} fits" if largest >= STEP else "export again with a smaller --scheme",
    )


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
