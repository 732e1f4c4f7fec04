"""Plan: which engine opens which part, with how many threads and how much context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.bundle.manifest import ROLES, Manifest, Part
from edge.devices import DeviceProfile, host
from edge.engines import EngineInfo, opening, refusals
from edge.errors import EngineError, UsageError
from edge.planning.alternatives import too_little
from edge.planning.memory import Need, settle
from edge.planning.sizes import cache_item, sizes
from edge.types import CacheKind


@dataclass(frozen=True)
class Choice:
    part: Part
    engine: str


@dataclass(frozen=True)
class Plan:
    choices: tuple[Choice, ...]  # in the order of the roles
    threads: int
    context: int
    cache: CacheKind | None = None  # how an engine that keeps its own KV cache stores it; None: as it likes
    one_at_a_time: bool = False  # the vision part is closed before the decoder opens, and the other way round
    peak_bytes: int = 0  # of memory, at a full context, as predicted
    given_up: tuple[str, ...] = ()  # what was not asked for and is done to fit, in words
    isa: tuple[str, ...] | None = None  # the instruction sets that engines are held to; None: all
    free: tuple[str, ...] = ()  # the engines that cannot be held to them

    @property
    def engines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(choice.engine for choice in self.choices))

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
        return {
            "parts": parts,
            "threads": self.threads,
            "context": self.context,
            "cache": self.cache,
            "one_at_a_time": self.one_at_a_time,
            "peak_bytes": self.peak_bytes,
            "given_up": list(self.given_up),
            "isa": self.isa and list(self.isa),
        }


def plan(
    manifest: Manifest,
    device: DeviceProfile,
    engines: Sequence[EngineInfo],
    *,
    engine: str | None = None,
    threads: int = 0,
    context: int = 0,
    cache: CacheKind | None = None,
    isa: str | None = None,
) -> Plan:
    """The device's preferred engine for every part, with settled threads and context.

    - `engine`: goes before the preferred one for the parts that it opens.
    - `threads`: 0 takes the device's.
    - `context`: 0 takes the model's, or as much of it as the memory holds.
    - `cache`: how an engine that keeps its own KV cache stores it; None: as it likes.
    - `isa`: the widest instruction set to use, by the engines that can be held to it.

    Where memory is short, the KV cache is stored in 8 bits, and vision encoder and decoder are open one at a time
    (`edge.planning.memory`). Raises EngineError when no engine opens a part, none can be held, or the memory is too
    small; UsageError when the call asks for what does not exist.
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
    if not 0 <= context <= manifest.spec.decoder.context:
        raise UsageError(f"a context of {context}", hint=f"the model's is {manifest.spec.decoder.context}")
    names = {choice.engine for choice in choices}
    free = tuple(e.name for e in engines if e.name in names and not e.narrows) if isa else ()
    if isa and len(free) == len(names):
        raise EngineError(
            f"{' and '.join(free)} cannot be held to {isa}: what their kernels use is their own choice",
            hint="leave --isa away, or export a GGUF decoder: llama.cpp can be held to less",
        )
    need = needed(manifest, choices, engines)
    found = settle(need, device.memory_bytes, context, cache)
    if found is None:
        raise too_little(manifest, need, device.memory_bytes, context, cache)
    whole = context or manifest.spec.decoder.context
    given_up = [f"KV cache in {found.cache}"] if found.cache != cache else []
    given_up += ["vision encoder and decoder open one at a time"] if found.one_at_a_time else []
    given_up += [f"a context of {found.context}, not {whole}"] if found.context != whole else []
    return Plan(
        choices=tuple(choices),
        threads=threads or device.threads,
        context=found.context,
        cache=found.cache,
        one_at_a_time=found.one_at_a_time,
        peak_bytes=found.memory.peak,
        given_up=tuple(given_up),
        isa=host.up_to(isa, device.isa) if isa else None,
        free=free,
    )


def needed(manifest: Manifest, choices: Sequence[Choice], engines: Sequence[EngineInfo]) -> Need:
    """What the chosen parts take in memory, as their engines keep them."""
    infos = {engine.name: engine for engine in engines}
    vision = decoder = 0
    for part, engine in ((choice.part, infos[choice.engine]) for choice in choices):
        held = round(part.size * engine.held(part.scheme))
        if "decoder" not in part.covers:
            vision += held
            continue
        decoder, item, chosen = held, cache_item(part), engine
    measured = sizes(manifest, [choice.part for choice in choices])
    kinds, copies = ((), 1) if item else (chosen.caches, chosen.copies)
    return Need(measured, vision, decoder, item or chosen.item, kinds, copies)


def _choose(
    role: str, manifest: Manifest, device: DeviceProfile, engines: Sequence[EngineInfo], wanted: str | None
) -> Choice:
    manifest.part(role)  # raises BundleError when there is none
    parts = [part for part in manifest.parts if role in part.covers]
    preferred = device.engines.get(role, ())

    def rank(info: EngineInfo) -> tuple[bool, int]:
        return info.name != wanted, preferred.index(info.name) if info.name in preferred else len(preferred)

    ranked = sorted(engines, key=rank)
    for info in ranked:
        for part in parts:
            if opening(part.format, (info,), wanted):
                return Choice(part, info.name)
    raise _refused(f"no engine opens the {role} of {manifest.name}", parts, ranked)


def _refused(what: str, parts: Sequence[Part], engines: Sequence[EngineInfo]) -> EngineError:
    formats = tuple(dict.fromkeys(part.format for part in parts))
    lines = [f"  {name}: {why}" for name, why in refusals(formats, engines).items()]
    missing = [info for info in engines if set(formats) & set(info.formats) and not info.installed and not info.unfit]
    return EngineError(
        "\n".join([f"{what} ({', '.join(formats)})", *lines]),
        hint=missing[0].install if missing else "export the bundle again in another --format",
    )
