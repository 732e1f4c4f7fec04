"""The bundles that are served: one session each."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge.bundle.manifest import MANIFEST
from edge.devices import host
from edge.errors import EngineError, UsageError
from edge.inference.guide import Guide
from edge.inference.session import Session
from edge.inference.vision import REMEMBERED
from edge.inputs.prompt import Turn, segments
from edge.inputs.views import Views
from edge.server.constraints import Wanted
from edge.server.conversation import Conversation, Picture
from edge.server.errors import ApiError
from edge.server.limits import Limits
from edge.types import Embeddings


class Model:
    """A session. Its decoder belongs to the engines' thread; pictures may be encoded by another one meanwhile."""

    def __init__(self, name: str, session: Session, kept_bytes: int = 0) -> None:
        """`kept_bytes`: for conversations that wait for their next question."""
        self.name = name
        self.session = session
        self.kept = session.keep(kept_bytes)
        self.manifest = session.bundle.manifest
        self.created = int((session.bundle.path / MANIFEST).stat().st_mtime)
        # Encoding beside decoding: where both engines are open, and a core is there for each.
        self.overlaps = not session.plan.one_at_a_time and host.inspect().cores > 1
        self._eye = threading.Lock()
        self._grammar = threading.Lock()
        self._files: OrderedDict[str, Embeddings] = OrderedDict()

    def known(self, key: str) -> Embeddings | None:
        """Of a file that was shown before: it is not even decoded again."""
        with self._eye:
            return self._files.get(key)

    def encode(self, key: str, views: Views) -> Embeddings:
        """What the decoder sees of the file of that key."""
        with self._eye:
            found = self._files[key] = self.session.encode_pixels(views)
            self._files.move_to_end(key)
            if len(self._files) > REMEMBERED:
                self._files.popitem(last=False)
            return found

    def check(self, conversation: Conversation, limits: Limits) -> int:
        """Make the conversation ready, of so many positions or more: no picture is read, and each counts as one view.
        Raises ApiError when it does not fit the model."""
        conversation.finish(limits, self.session.plan.context)
        if conversation.pictures and not self.manifest.sees:
            raise ApiError(
                400, f"{self.name} has no vision part: it answers questions about text only", param=conversation.where
            )
        return self.positions(conversation, ())

    def positions(self, conversation: Conversation, pictures: Sequence[Embeddings | Views]) -> int:
        """Of a conversation with these pictures, the first of its own; those that follow count as one view. Nothing is
        computed. Raises ApiError when they are more than the context."""
        where, context, spec = conversation.where, self.session.plan.context, self.manifest.spec.prompt
        shown = [found if isinstance(found, Embeddings) else _blank(found, spec.image_tokens) for found in pictures]
        rest = len(conversation.pictures) - len(shown)
        shown += [Embeddings(np.empty((spec.image_tokens, 0), np.float32), "")] * rest
        turns = turned(conversation, shown)
        needed = sum(map(len, segments(spec, self.session.tokenizer, turns, conversation.system)))
        if needed > context:
            raise ApiError(
                400,
                f"{where} needs {needed} tokens, and the context holds {context}",
                param=where,
                code="context_length_exceeded",
            )
        return needed

    def guide(self, wanted: Wanted | None) -> Guide | None:
        """What holds an answer to what is wanted. Raises ApiError on what cannot be followed."""
        if wanted is None:
            return None
        try:
            with self._grammar:
                return self.session.guide(wanted.constraint)
        except UsageError as error:
            raise wanted.refused(error) from error
        except EngineError as error:  # its library is not there
            message = f"{wanted.where}: {error.message}; {error.hint}"
            raise ApiError(400, message, param=wanted.where, code="unsupported") from error

    def to_json(self) -> dict[str, Any]:
        """The protocol's object, and under `edge` what the page shows of a bundle."""
        manifest, plan = self.manifest, self.session.plan
        parts = [
            {
                "covers": list(choice.part.covers),
                "format": choice.part.format,
                "scheme": choice.part.scheme,
                "engine": choice.engine,
                "bytes": choice.part.size,
                "tolerance": dict(choice.part.tolerance),
                "error": dict(choice.part.error),
            }
            for choice in plan.choices
        ]
        about = {
            "name": manifest.name,
            "recipe": manifest.recipe,
            "license": manifest.license,
            "source": manifest.source.get("sha256"),
            "sees": manifest.sees,
            "context": plan.context,
            "threads": plan.threads,
            "image_tokens": manifest.spec.prompt.image_tokens,
            "parts": parts,
        }
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "edge-vlm", "edge": about}


def _blank(views: Views, one: int) -> Embeddings:
    """As many rows as the picture of these views gives, without numbers."""
    return Embeddings(np.empty((views.tokens(one), 0), np.float32), "", grid=views.grid)


def turned(conversation: Conversation, images: Sequence[Embeddings]) -> list[Turn]:
    """`images`: of its pictures, in their order."""
    left = iter(images)
    return [
        Turn(tuple(next(left) if isinstance(item, Picture) else item for item in said.content), said.answer)
        for said in conversation.turns
    ]
