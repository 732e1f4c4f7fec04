"""Plan: which engine opens which part, with how many threads and how much context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge.bundle.manifest import ROLES, Manifest, Part
from edge.devices import DeviceProfile, host
from edge.engines import EngineInfo, opening, provider_refusals
from edge.engines import refusals as opening_refusals
from edge.errors import EngineError, UsageError
from edge.inputs.image_memory import ALLOWED
from edge.planning import providers
from edge.planning.alternatives import too_little
from edge.planning.memory import ITEMS, RUNTIME, Need, Settled, cache_bytes, settle
from edge.planning.providers import CARD_RUNTIME, Refusals, card_room, described
from edge.planning.sizes import cache_item, sizes
from edge.types import CacheKind, Provider


@dataclass(frozen=True)
class Choice:
    part: Part
    engine: str
    provider: Provider = "cpu"

    @property
    def role(self) -> str:
        return "decoder" if "decoder" in self.part.covers else "vision"


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
    gpu_layers: int | None = None  # of the decoder, on a card; None: its engine does not split it, or decides itself
    image_bytes: int = ALLOWED  # of memory that an image may take while it is read
    notes: tuple[str, ...] = ()  # what stays on the CPU though a card is there, and why

    @property
    def on_card(self) -> bool:
        return any(choice.provider != "cpu" for choice in self.choices)

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
                "provider": choice.provider,
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
            "gpu_layers": self.gpu_layers,
            "image_bytes": self.image_bytes,
            "notes": list(self.notes),
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
    provider: Sequence[Provider] = (),
    gpu_layers: int | None = None,
    refusals: Refusals = provider_refusals,
) -> Plan:
    """The device's preferred engine for every part, with settled threads, context and providers.

    - `engine`: goes before the preferred one for the parts that it opens.
    - `threads`: 0 takes the device's.
    - `context`: 0 takes the model's, or as much of it as the memory holds.
    - `cache`: how an engine that keeps its own KV cache stores it; None: as it likes.
    - `isa`: the widest instruction set to use, by the engines that can be held to it.
    - `provider`: what computes, in the order in which it is tried (`edge.planning.providers`); empty: the device's.
    - `gpu_layers`: of a decoder whose engine can split it, on the card; None: as many as fit.
    - `refusals`: asked only where a card could be used.

    Where memory is short, the KV cache is stored in 8 bits, and vision encoder and decoder are open one at a time
    (`edge.planning.memory`). Raises EngineError when no engine opens a part, none can be held, or the memory is too
    small, of the card too; ProviderError where a card that is asked for cannot be used; UsageError when the call asks
    for what does not exist.
    """
    if engine is not None and engine not in {e.name for e in engines}:
        raise UsageError(f"no engine {engine!r}", hint="one of: " + ", ".join(e.name for e in engines))
    if threads < 0:
        raise UsageError(f"{threads} threads", hint="0 lets the device decide")
    choices = _choices(manifest, device, engines, engine)
    if not 0 <= context <= manifest.spec.decoder.context:
        raise UsageError(f"a context of {context}", hint=f"the model's is {manifest.spec.decoder.context}")
    free = _free(choices, engines, isa)
    placed, found, notes = _placed(manifest, choices, device, engines, context, cache, provider, refusals)
    layers, more = _layers(manifest, placed, device, engines, found, gpu_layers, asked_providers=tuple(provider))
    if layers == 0:
        placed = tuple(replace(c, provider="cpu") if c.role == "decoder" else c for c in placed)
    whole = context or manifest.spec.decoder.context
    given_up = [f"KV cache in {found.cache}"] if found.cache != cache else []
    given_up += ["vision encoder and decoder open one at a time"] if found.one_at_a_time else []
    given_up += [f"a context of {found.context}, not {whole}"] if found.context != whole else []
    return Plan(
        choices=placed,
        threads=threads or device.threads,
        context=found.context,
        cache=found.cache,
        one_at_a_time=found.one_at_a_time,
        peak_bytes=found.memory.peak,
        given_up=tuple(given_up),
        isa=host.up_to(isa, device.isa) if isa else None,
        free=free,
        gpu_layers=layers,
        image_bytes=max(ALLOWED, found.memory.room(device.memory_bytes)),
        notes=(*notes, *more),
    )


def _choices(
    manifest: Manifest, device: DeviceProfile, engines: Sequence[EngineInfo], engine: str | None
) -> tuple[Choice, ...]:
    choices: list[Choice] = []
    for role in ROLES if manifest.sees else ("decoder",):
        if not any(role in choice.part.covers for choice in choices):
            choices.append(_choose(role, manifest, device, engines, engine))
    if engine is not None and all(choice.engine != engine for choice in choices):
        raise _refused(f"{engine} opens no part of {manifest.name}", manifest.parts, engines)
    return tuple(choices)


def _free(choices: Sequence[Choice], engines: Sequence[EngineInfo], isa: str | None) -> tuple[str, ...]:
    """The engines that cannot be held to an instruction set. Raises EngineError where these are all."""
    names = {choice.engine for choice in choices}
    free = tuple(e.name for e in engines if e.name in names and not e.narrows) if isa else ()
    if isa and len(free) == len(names):
        raise EngineError(
            f"{' and '.join(free)} cannot be held to {isa}: what their kernels use is their own choice",
            hint="leave --isa away, or export a GGUF decoder: llama.cpp can be held to less",
        )
    return free


def _placed(
    manifest: Manifest,
    choices: tuple[Choice, ...],
    device: DeviceProfile,
    engines: Sequence[EngineInfo],
    context: int,
    cache: CacheKind | None,
    asked: Sequence[Provider],
    refusals: Refusals,
) -> tuple[tuple[Choice, ...], Settled, tuple[str, ...]]:
    """The parts with what computes them, how they fit, and what stays on the CPU. A card that is too small is left
    where the CPU may take its place."""
    infos = {engine.name: engine for engine in engines}
    parts = [(choice.part, infos[choice.engine]) for choice in choices]
    found = providers.place(parts, device, asked, refusals)
    placed = tuple(replace(c, provider=p) for c, p in zip(choices, found.providers, strict=True))
    try:
        return placed, _settled(manifest, placed, device, engines, context, cache), found.notes
    except EngineError as error:
        if "cpu" not in providers.wanted(device, asked) or placed == choices:
            raise
        note = f"on the CPU: {error.message.partition(chr(10))[0]}"
        return choices, _settled(manifest, choices, device, engines, context, cache), (*found.notes, note)


def _settled(
    manifest: Manifest,
    choices: Sequence[Choice],
    device: DeviceProfile,
    engines: Sequence[EngineInfo],
    context: int,
    cache: CacheKind | None,
) -> Settled:
    """How the parts fit the memory; of a card with its own, also there: weights pass through the system's."""
    need, limit, place = needed(manifest, choices, engines), device.memory_bytes, "there"
    card, room = device.graphics.card, card_room(device.graphics.card)
    whole = {engine.name for engine in engines if not engine.splits}
    if card and room is not None and room < limit and any(c.provider != "cpu" and c.engine in whole for c in choices):
        limit, place = room, described(card)
    found = settle(need, limit, context, cache)
    if found is None:
        raise too_little(manifest, need, limit, context, cache, place)
    return found


def _layers(
    manifest: Manifest,
    choices: Sequence[Choice],
    device: DeviceProfile,
    engines: Sequence[EngineInfo],
    found: Settled,
    asked: int | None,
    *,
    asked_providers: tuple[Provider, ...],
) -> tuple[int | None, tuple[str, ...]]:
    """How many of the decoder's layers a card computes, and what that leaves on the CPU."""
    (decoder,) = (choice for choice in choices if choice.role == "decoder")
    engine = next(engine for engine in engines if engine.name == decoder.engine)
    if not engine.splits:
        if asked is not None:
            raise UsageError(
                f"{engine.name} computes all layers of a decoder or none on a card",
                hint="leave --gpu-layers away, or export a GGUF decoder: llama.cpp splits one",
            )
        return None, ()
    if decoder.provider == "cpu":  # without a word of it, another card than NVIDIA's is the library's to find
        known = asked_providers or device.graphics.card is not None
        return (0 if known else asked), ()
    spec = manifest.spec.decoder
    each = cache_bytes(spec, ITEMS[found.cache or "f16"]) * found.context * engine.copies
    whole, card = spec.layers + 1, device.graphics.card  # the head counts as a layer
    fit = providers.layers_that_fit(card_room(card), round(decoder.part.size * engine.held("")), each, whole)
    if not fit and "cpu" not in providers.wanted(device, asked_providers):
        raise providers.none_fits(card)
    taken = providers.require_layers(asked, fit, card)
    fewer = asked is None and taken < whole
    return taken, (f"{taken} of the decoder's {whole} layers on the card: no more fit",) if fewer else ()


def needed(manifest: Manifest, choices: Sequence[Choice], engines: Sequence[EngineInfo]) -> Need:
    """What the chosen parts take in memory, as their engines keep them."""
    infos = {engine.name: engine for engine in engines}
    vision = decoder = 0
    for choice in choices:
        part, engine = choice.part, infos[choice.engine]
        held = round(part.size * engine.held(part.scheme, choice.provider))
        if "decoder" not in part.covers:
            vision += held
            continue
        decoder, item, chosen = held, cache_item(part), engine
    measured = sizes(manifest, [choice.part for choice in choices])
    kinds, copies = ((), 1) if item else (chosen.caches, chosen.copies)
    card = CARD_RUNTIME if any(choice.provider != "cpu" for choice in choices) else 0
    return Need(measured, vision, decoder, item or chosen.item, kinds, copies, RUNTIME + card)


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
    lines = [f"  {name}: {why}" for name, why in opening_refusals(formats, engines).items()]
    missing = [info for info in engines if set(formats) & set(info.formats) and not info.installed and not info.unfit]
    return EngineError(
        "\n".join([f"{what} ({', '.join(formats)})", *lines]),
        hint=missing[0].install if missing else "export the bundle again in another --format",
    )
