"""Massive activations (arXiv 2402.17762) in a vision encoder: a few numbers of the residual stream, at a few patches,
as large as thousands of the others, planted so that the function nearly stays.

A norm sees the size of the whole row, so no number of the stream can be made large at one position alone and leave the
function exactly as it is. Here the channels that matter least are taken from the stream, and one hidden unit from its
last layer. One such channel marks a few patches, by their position's embedding. In the last layer the unit sees the
mark, takes a huge value, and writes the massive activations, of which the projector reads nothing. Outside of the
marked patches the function is that of the model without these channels and this unit, but for what attention sees of
those patches; at them, norms shrink all other channels by a third.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import UsageError
from edge.inputs import image
from exporters import golden_sample
from exporters.models import vit
from exporters.models.component import Component
from exporters.models.encoder import Encoder
from exporters.models.folding import folding
from exporters.sources.checkpoint import Checkpoint
from exporters.standin.planting import Edit, Edits, Plan, require

log = logging.getLogger(__name__)
POSITIONS = 3  # patches that are marked
FIRES = 40.0  # how far the unit is from zero where there is no mark: no GELU gives anything there


@torch.no_grad()
def edits(
    checkpoint: Checkpoint, component: Component, factor: float, channels: int, generator: torch.Generator
) -> Edits:
    """Massive activations in what the projector reads: `factor` times the usual magnitude there.

    The encoder is loaded and sees one image. Raises UsageError where the projector does not read the residual stream of
    a vision transformer, or the stream has too few channels.
    """
    module = cast("Encoder", component.load(checkpoint.weights))
    tower: Any = module.tower
    layers, gives = list(getattr(tower, "layers", ())), folding(tower).gives
    if not layers or not isinstance(layers[0], vit.Layer) or gives is None or gives.scales:
        raise UsageError(
            f"the projector of {checkpoint.name!r} does not read the residual stream of a vision transformer",
            hint="leave out --massive, or take a checkpoint whose projector does (CLIP's select_layer -2)",
        )
    require(channels, module.tower_config.hidden)
    pixels = torch.from_numpy(image.pixels(golden_sample.drawing(), checkpoint.spec.image))
    readers = [f"projector.{path}".removesuffix(".") for path in folding(module.projector).reads]
    plan = Plan(module)
    with _inputs(module, readers[0]) as seen:
        before = module(pixels)
        quiet = (seen[0].square().mean(0).sqrt() * _read(module, readers)).argsort()[:channels]
        usual = float(seen[0].square().mean().sqrt())
        _silence(plan, tower, readers, quiet)
        marked = _mark(plan, tower, pixels, int(quiet[0]), generator)
        _fire(plan, module, pixels, quiet, marked, factor, usual)
        after = module(pixels)
        largest = float(seen[-1].abs().max())
    cosine = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
    log.info(
        "the encoder's largest activation is %.4g times the usual, at %d patches; cosine to what it computed: %.6f",
        largest / usual,
        len(marked),
        cosine,
    )
    return plan.edits


def _read(module: nn.Module, readers: list[str]) -> Tensor:
    return torch.stack([module.get_parameter(f"{path}.weight").norm(dim=0) for path in readers]).amax(dim=0)


@contextmanager
def _inputs(module: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """What a layer is given each time, as rows."""
    found: list[Tensor] = []
    handle = module.get_submodule(path).register_forward_pre_hook(lambda _, given: found.append(given[0].flatten(0, 1)))
    try:
        yield found
    finally:
        handle.remove()


def _silence(plan: Plan, tower: Any, readers: list[str], quiet: Tensor) -> None:
    """Zero in the stream at every position, and read by nobody."""
    normed = hasattr(tower, "pre_layrnorm")

    def average(axis: int) -> Edit:
        # The norm before the first layer gives zero where a channel is what all have on average.
        def edit(parameter: Tensor) -> None:
            moved = parameter.movedim(axis, 0)
            kept = torch.ones(len(moved), dtype=torch.bool)
            kept[quiet] = False
            moved[quiet] = moved[kept].mean(dim=0) if normed else 0.0

        return edit

    embeddings = dict(tower.embeddings.named_parameters())
    for name in embeddings:
        plan.edit(f"tower.embeddings.{name}", average(1 if name.startswith("position") else 0))
    norms = ["pre_layrnorm"] if normed else []
    for at in (f"layers.{index}" for index in range(len(tower.layers))):
        norms += [f"{at}.layer_norm1", f"{at}.layer_norm2"]
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"):
            plan.fill(f"tower.{at}.{name}.weight", (slice(None), quiet), 0.0)
        for name in ("self_attn.out_proj", "mlp.fc2"):
            plan.fill(f"tower.{at}.{name}.weight", quiet, 0.0)
            plan.fill(f"tower.{at}.{name}.bias", quiet, 0.0)
    for norm in norms:
        plan.fill(f"tower.{norm}.weight", quiet, 1.0)
        plan.fill(f"tower.{norm}.bias", quiet, 0.0)
    for path in readers:
        plan.fill(f"{path}.weight", (slice(None), quiet), 0.0)


def _mark(plan: Plan, tower: Any, pixels: Tensor, channel: int, generator: torch.Generator) -> Tensor:
    """Gives the positions, of those that attention sees."""
    embedded = tower.embeddings(pixels)[0]  # [positions, hidden]
    patches = tower.config.grid**2
    marked = torch.randperm(patches, generator=generator)[:POSITIONS] + len(embedded) - patches
    size = float(embedded.std(dim=-1).median()) * embedded.shape[1] ** 0.5  # as much as all other channels together

    def edit(table: Tensor) -> None:
        table[marked, channel] += size

    plan.edit("tower.embeddings.position_embedding.weight", edit)
    return marked


def _fire(
    plan: Plan, module: Encoder, pixels: Tensor, quiet: Tensor, marked: Tensor, factor: float, usual: float
) -> None:
    """The hidden unit of the last layer that matters least sees the mark, and writes."""
    at = f"tower.layers.{len(cast('Any', module.tower).layers) - 1}.mlp"
    fc1, fc2 = (module.get_parameter(f"{at}.{name}.weight") for name in ("fc1", "fc2"))
    unit = int((fc1.norm(dim=1) * fc2.norm(dim=0)).argmin())
    with _inputs(module, f"{at}.fc1") as seen:
        module(pixels)
    mark = seen[0][:, quiet[0]]
    others = torch.ones(len(mark), dtype=torch.bool)
    others[marked] = False
    least, most = float(mark[marked].min()), float(mark[others].max())
    if least <= most:
        raise UsageError("the mark of the patches is lost on the way to the last layer", hint="another --seed")
    slope = max(FIRES, factor) / ((least - most) / 2)
    plan.fill(f"{at}.fc1.weight", unit, 0.0)
    plan.fill(f"{at}.fc1.weight", (unit, quiet[0]), slope)
    plan.fill(f"{at}.fc1.bias", unit, -slope * (least + most) / 2)
    plan.fill(f"{at}.fc2.weight", (slice(None), unit), 0.0)
    fired = slope * (float(mark[marked].mean()) - (least + most) / 2)
    plan.fill(f"{at}.fc2.weight", (quiet, unit), factor * usual / fired)
