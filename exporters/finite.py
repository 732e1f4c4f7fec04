"""Weights that cannot be stored: NaN, infinity, and numbers that a scheme's narrower type would make infinite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from edge import plugins
from edge.errors import CheckpointError, UsageError
from edge.recipes import Target
from exporters import targets
from exporters.formats import HALF, NOTHING, SINGLE, Job, Progress
from exporters.pipeline import parts
from exporters.sources.checkpoint import Checkpoint
from exporters.widening import Widened

_NAMED = 8  # tensors in a message: a broken merge may have spoilt all of them


def check(
    checkpoint: Checkpoint,
    to: Mapping[str, Target],
    options: targets.Options,
    progress: Progress,
    widened: Widened = NOTHING,
) -> None:
    """Read every weight that is exported, once. Raises CheckpointError that names those with NaN or infinity,
    UsageError on finite ones that a target's scheme would store as infinity.

    Integers of 4 bits hide a NaN: its block is rounded to other numbers, and the reference, which is computed on the
    stored weights, agrees. So the weights are looked at before anything is written.
    """
    found = parts(checkpoint, to)
    names = dict.fromkeys(key for part in found for source in part.keys.values() for key in source.names)
    largest: dict[str, float] = {}
    with ThreadPoolExecutor(max_workers=4) as pool:  # mapped files are read page by page, each page waited for
        for name, value in zip(names, pool.map(lambda name: _largest(checkpoint.weights[name]), names), strict=True):
            largest[name] = value
            progress(len(largest) / len(names))
    if spoilt := [name for name, value in largest.items() if not value < SINGLE]:
        raise CheckpointError(
            "the checkpoint has weights that are not finite in float32:\n  "
            + _listed(spoilt, lambda name: _described(checkpoint.weights[name])),
            hint="the training or the merge that made them failed: repeat it, or download the checkpoint again",
        )
    if any(value >= HALF for value in largest.values()):  # no scheme's type is narrower
        for part in found:
            target = to[part.role]
            mine = options.get(target.format, {})
            job = Job(part, target.scheme, Path(), checkpoint, options=mine, widened=widened.get(part.role, {}))
            _require_room(job, target.format, largest)


def _largest(tensor: Tensor) -> float:
    """Of the magnitudes; NaN where there is one."""
    if not tensor.numel():
        return 0.0
    # The least and the largest tell of all, without a copy; a NaN comes through.
    low, high = map(float, torch.aminmax(tensor))
    return max(-low, high) if low == low else low


def _described(tensor: Tensor) -> str:
    """`1 NaN, 2 infinite of 4096, the first at [3, 4]`."""
    tensor = tensor.float()  # what it is computed in
    nan, wrong = tensor.isnan(), ~tensor.isfinite()
    counts = {"NaN": int(nan.sum()), "infinite": int(wrong.sum()) - int(nan.sum())}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    flat = int(wrong.flatten().int().argmax())
    first = [int(axis) for axis in torch.unravel_index(torch.tensor(flat), tensor.shape)]
    return f"{told} of {tensor.numel()}, the first at {first}"


def _require_room(job: Job, format: str, largest: Mapping[str, float]) -> None:
    found = dict(_beyond(job, format, largest))
    if not found:
        return
    others = targets.schemes(format)[job.role]
    wider = [scheme for scheme in others if _has_room(replace(job, scheme=scheme), format, largest)]
    other = "another --format" + (" or --tensor-type" if job.role == "decoder" and "tensor_type" in job.options else "")
    raise UsageError(
        f"{format} {job.scheme} cannot store weights of the {job.role}, which would become infinite:\n  "
        + _listed(list(found), lambda name: f"up to {largest[name]:.6g}, must be below {found[name]:.6g}"),
        hint=f"--scheme {job.role}={wider[0]}" + "".join(f", or {scheme}" for scheme in wider[1:]) if wider else other,
    )


def _has_room(job: Job, format: str, largest: Mapping[str, float]) -> bool:
    try:
        return not any(_beyond(job, format, largest))
    except UsageError:  # an option that was given is none of this scheme's
        return False


def _beyond(job: Job, format: str, largest: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """The checkpoint's tensors that are too large for the scheme, each with its bound."""
    bounds = plugins.load(targets.FORMATS, format).bounds(job)
    for name, source in job.component.keys.items():
        bound = bounds.get(name, SINGLE)
        yield from ((key, bound) for key in source.names if source.largest(largest[key]) >= bound)


def _listed(names: list[str], described: Callable[[str], str]) -> str:
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return "\n  ".join([*(f"{name}: {described(name)}" for name in names[:_NAMED]), *more])
