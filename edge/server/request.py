"""What a request asks of a model, whichever endpoint it came by."""

from __future__ import annotations

from dataclasses import dataclass

from edge.inference.sampling import Sampling
from edge.server.constraints import Wanted
from edge.server.conversation import Conversation, Item, Picture
from edge.server.errors import ApiError
from edge.server.fields import Fields
from edge.server.limits import Limits

MOST = 2**31 - 1
_SEED = 2**63 - 1


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted."""

    model: str
    conversation: Conversation
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # None: no probabilities at all
    constraint: Wanted | None = None  # what the answer must be
    stream: bool = False
    include_usage: bool = False

    def __post_init__(self) -> None:
        """Raises ApiError: an answer that is cut at a text may not be what it must be."""
        if self.constraint is not None and any(self.stop):
            where = self.constraint.where
            raise ApiError(400, f"stop cannot be together with {where}", param="stop", code="unsupported")


def read_sampling(fields: Fields) -> Sampling:
    """The protocol's own fields, and those of `edge run`. Absent: the most probable token, as `edge run` picks."""
    top_p = fields.number("top_p", 0, 1)
    return Sampling(
        temperature=fields.number("temperature", 0, 2) or 0.0,
        top_k=fields.integer("top_k", 0, MOST) or 0,
        top_p=1.0 if top_p is None else max(top_p, 1e-9),  # the protocol's 0 is the most probable token alone
        repeat_penalty=fields.number("repeat_penalty", 1e-3, 1e3) or 1.0,
        seed=fields.integer("seed", 0, _SEED),
    )


def read_max_tokens(fields: Fields, keys: tuple[str, ...], limits: Limits) -> int:
    """The first of the keys that is there."""
    found = [value for key in keys if (value := fields.integer(key, 1, MOST)) is not None]
    return found[0] if found else limits.default_tokens


def read_model(fields: Fields, names: tuple[str, ...]) -> str:
    """One of the names; without the field the only one there is. Raises ApiError."""
    wanted = fields.text("model")
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None:
        raise ApiError(400, f"model is missing; one of: {', '.join(names)}", param="model")
    if wanted not in names:
        message = f"the model {wanted[:80]!r} does not exist; one of: {', '.join(names)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return wanted


def read_image(part: Fields, key: str) -> Item:
    """A picture whose field is a URL, or an object with one."""
    where, value = part.name(key), part.take(key)
    if isinstance(value, dict):
        inner = Fields(value, where)
        where, value = inner.name("url"), inner.take("url")
        inner.ignore(("detail",))
        inner.end()
    if not isinstance(value, str):
        raise ApiError(400, f"{where} is no image URL", param=where, code="invalid_image_url")
    part.ignore(("detail",))
    return Picture(value, where)
