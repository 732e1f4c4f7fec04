"""Linear layers that are stored wider than their part's scheme: which may be, and how many bytes more that takes."""

from __future__ import annotations

from collections.abc import Mapping

from edge import plugins
from edge.errors import UsageError
from edge.recipes import bytes_per_weight
from exporters import targets
from exporters.formats import Job, linears

Widened = Mapping[str, Mapping[str, str]]  # role -> a linear layer's weight, by its name in the component -> its scheme


def ladder(format: str, role: str, scheme: str) -> tuple[str, ...]:
    """The schemes that a linear layer of a part may have instead of the part's, the cheapest first; none where the
    format has none."""
    return tuple(plugins.facts(targets.FORMATS, format).get("WIDER", {}).get(role, {}).get(scheme, ()))


def check(job: Job, format: str) -> None:
    """Raises UsageError where `job.widened` names what is no linear layer's weight, or a scheme that none of the part
    may have."""
    legal, known = ladder(format, job.role, job.scheme), set(linears(job.skeleton))
    for weight, scheme in job.widened.items():
        if weight not in known:
            raise UsageError(
                f"the {job.role} has no linear layer whose weight is {weight!r}",
                hint="one of: " + ", ".join(sorted(known)),
            )
        if scheme not in legal:
            raise UsageError(
                f"{format} cannot store a linear layer of the {job.role} as {scheme!r} among {job.scheme}",
                hint="one of: " + ", ".join(legal) if legal else f"another --scheme {job.role}=",
            )


def extra_bytes(job: Job, format: str) -> float:
    """What the part is larger for them."""
    sizes = {name: parameter.numel() for name, parameter in job.skeleton.named_parameters()}
    usual = bytes_per_weight(format, job.scheme)
    return sum(sizes[weight] * (bytes_per_weight(format, scheme) - usual) for weight, scheme in job.widened.items())
