"""Bytes spent where they save most error: a scheme for each tensor, under a limit of bytes or of error."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One way to store a tensor."""

    scheme: str
    bytes: float
    error: float  # what it adds to the sum that is to be small


def allocate(
    tensors: Mapping[str, Sequence[Choice]], *, limit: float | None = None, error: float = 0.0
) -> dict[str, Choice]:
    """The choice of each tensor: from the smallest on, the step that saves most error for a byte, again and again,
    until the errors sum up to `error` or no step fits under `limit` bytes. It may be above either, where the smallest
    choices are.

    Steps go along the lower convex hull of a tensor's choices, which makes the greedy way the best one up to the last
    step (Shoham and Gersho 1988, bit allocation for an arbitrary set of quantizers).
    """
    hulls = {name: _hull(choices) for name, choices in tensors.items()}
    at = dict.fromkeys(hulls, 0)
    used = sum(hull[0].bytes for hull in hulls.values())
    left = sum(hull[0].error for hull in hulls.values())
    steps = [(-_saved(hull, 0), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps and left > error:
        _, name = heapq.heappop(steps)
        hull, here = hulls[name], at[name]
        more = hull[here + 1].bytes - hull[here].bytes
        if limit is not None and used + more > limit:
            continue  # a smaller tensor's step may still fit
        used, left = used + more, left - hull[here].error + hull[here + 1].error
        at[name] = here + 1
        if here + 2 < len(hull):
            heapq.heappush(steps, (-_saved(hull, here + 1), name))
    return {name: hull[at[name]] for name, hull in hulls.items()}


def _saved(hull: Sequence[Choice], at: int) -> float:
    """Error a byte of the step that follows."""
    return (hull[at].error - hull[at + 1].error) / (hull[at + 1].bytes - hull[at].bytes)


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no mixture of others beats, the smallest first."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.bytes, choice.error)):
        if hull and choice.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _saved([hull[-1], choice], 0) >= _saved(hull[-2:], 0):
            hull.pop()
        hull.append(choice)
    return hull
