"""Providers: which parts of a plan a card computes, how many of a decoder's layers, and why the CPU does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from edge.bundle.manifest import Part
from edge.devices import DeviceProfile
from edge.devices.nvidia import Card
from edge.engines import EngineInfo
from edge.errors import ProviderError, UsageError
from edge.types import Provider

Refusals = Callable[[str], Mapping[str, str]]  # engine -> provider -> why it cannot be used; empty where it can

# Bytes that CUDA's context, cuBLAS and cuDNN take on a card: general knowledge, not measured.
CARD_RUNTIME = 450_000_000
NO_DRIVER = "there is no NVIDIA driver on this machine"
NO_KERNELS = "{engine} has no kernels for it on {provider}"
_DOCTOR = "edge doctor says what is there; --provider cpu computes on the processor"
_RECIPE = "edge export CHECKPOINT -o OUT --recipe onnx-w16a16-w4a16, which it has kernels for; or --provider cpu"


@dataclass(frozen=True)
class Placed:
    """`providers`: of each part, in their order. `notes`: what stays on the CPU though a card is there, and why."""

    providers: tuple[Provider, ...]
    notes: tuple[str, ...] = ()


def parse(text: str | None) -> tuple[Provider, ...]:
    """`cuda,cpu`: in the order in which they are tried; empty: as the device has it. Raises UsageError."""
    words = [word.strip().lower() for word in text.split(",")] if text else []
    known = get_args(Provider)
    if wrong := [word for word in words if word not in known]:
        raise UsageError(f"no provider {wrong[0]!r}", hint=f"one of: {', '.join(known)}; or two: cuda,cpu")
    if len(words) > 2 or words[1:] not in ([], ["cpu"]) or words == ["cpu", "cpu"]:
        raise UsageError(f"no providers {text!r}", hint="one, and the CPU where that fails: cuda,cpu")
    return cast("tuple[Provider, ...]", tuple(words))


def wanted(device: DeviceProfile, asked: Sequence[Provider]) -> tuple[Provider, ...]:
    """What is tried, in its order. Nobody asked: what the device's profile prefers, or CUDA where a card is, and the
    CPU beside it."""
    if asked:
        return tuple(asked)
    there = device.graphics.card is not None or (device.recognised is None and device.provider is not None)
    return (cast("Provider", device.provider or "cuda"), "cpu") if there else ("cpu",)


def place(
    parts: Sequence[tuple[Part, EngineInfo]], device: DeviceProfile, asked: Sequence[Provider], refusals: Refusals
) -> Placed:
    """Raises ProviderError where the CPU is not among what is wanted, and the card cannot be used."""
    order = wanted(device, asked)
    nothing: tuple[Provider, ...] = tuple("cpu" for _ in parts)
    if order[0] == "cpu":
        missing = device.graphics.missing
        return Placed(nothing, (f"on the CPU: {missing}",) if missing and not asked else ())
    strict = "cpu" not in order
    if why := _closed(device):
        if strict:
            raise ProviderError(f"{order[0]} cannot be used: {why}", hint=_DOCTOR)
        return Placed(nothing, (f"on the CPU: {why}",))
    found: list[Provider] = []
    notes: list[str] = []
    for part, engine in parts:
        provider, why = _choose(part, engine, order[0], device, refusals)
        if why and strict and engine.computes(order[0], _role(part), part.scheme):
            raise ProviderError(f"{engine.name} cannot use {order[0]}: {why}", hint=_DOCTOR)
        found.append(provider)
        notes += [f"the {_role(part)} ({part.scheme}) on the CPU: {why}"] if why else []
    if strict and not any(provider != "cpu" for provider in found):
        raise ProviderError("\n  ".join([f"{order[0]} computes no part of this bundle", *notes]), hint=_RECIPE)
    return Placed(tuple(found), tuple(notes))


def _choose(
    part: Part, engine: EngineInfo, first: Provider, device: DeviceProfile, refusals: Refusals
) -> tuple[Provider, str]:
    """What computes a part, and why that is the CPU. Beside TensorRT stands CUDA: for what it has no kernels for."""
    able = [p for p in dict.fromkeys((first, "cuda")) if engine.computes(p, _role(part), part.scheme)]
    if not able:
        return "cpu", NO_KERNELS.format(engine=engine.name, provider=first)
    if device.recognised is None:  # another machine: its profile's word
        return able[0], ""
    told = refusals(engine.name)
    why = [told.get(provider, "") for provider in able]
    return (able[why.index("")], "") if "" in why else ("cpu", why[0])


def _closed(device: DeviceProfile) -> str:
    """Why no card can be used, on this machine."""
    graphics = device.graphics
    if device.recognised is None:
        return ""
    if graphics.card is None:
        return graphics.missing or NO_DRIVER
    return f"{graphics.card.name} is busy: {graphics.card.closed}" if graphics.card.closed else ""


def card_room(card: Card | None) -> int | None:
    """Bytes that a model may take on a card of its own memory; None where the system's memory is the limit."""
    return None if card is None or card.shared else card.free_bytes


def described(card: Card) -> str:
    """What is left of its memory, and who has the rest."""
    others = f", where {', '.join(card.others)} computes too" if card.others else ""
    return f"free of {card.total_bytes / 1e6:,.0f} MB on {card.name}{others}"


def layers_that_fit(room: int | None, weights: int, cache: int, layers: int) -> int:
    """How many of a decoder's layers lie on a card, of `layers` of equal weight and cache; `room` None: all."""
    if room is None:
        return layers
    return max(0, min(layers, int((room - CARD_RUNTIME) / (-(-(weights + cache) // layers)))))


def none_fits(card: Card | None) -> ProviderError:
    place = described(card) if card else "there"
    return ProviderError(
        f"not one layer of the decoder fits in the memory that is {place}",
        hint="end what else computes there, take a smaller --scheme, or --provider cuda,cpu",
    )


def require_layers(asked: int | None, fit: int, card: Card | None) -> int:
    """The layers to compute on the card. Raises ProviderError where more are asked for than fit."""
    if asked is None:
        return fit
    if asked > fit:
        place = described(card) if card else "there"
        raise ProviderError(
            f"{asked} layers are more than fit: {fit} do in the memory that is {place}",
            hint=f"--gpu-layers {fit}, a shorter --context, or leave it away",
        )
    return asked


def _role(part: Part) -> str:
    return "decoder" if "decoder" in part.covers else "vision"
