"""Guides of one model: what holds an answer to a schema, compiled by llguidance where the extra `schema` brings it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge.errors import EngineError
from edge.inference.constraint import Constraint, constraint
from edge.inference.guide import Guide
from edge.inputs.tokenizer import Tokenizer
from edge.spec import VLMSpec

if TYPE_CHECKING:
    from edge.inference.grammar import Grammars

Schema = Mapping[str, Any] | Constraint | None  # what the answer must be: a JSON schema, or something else


class Guides:
    def __init__(self, tokenizer: Tokenizer, spec: VLMSpec) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._grammars: Grammars | None = None  # made when an answer is constrained

    def guide(self, schema: Schema) -> Guide | None:
        """Raises UsageError on a schema that cannot be followed, and EngineError without the extra `schema`."""
        wanted = constraint(schema)
        if wanted is None:
            return None
        if self._grammars is None:
            try:
                from edge.inference.grammar import Grammars
            except ImportError as error:
                raise EngineError(
                    f"an answer is held to a {wanted.kind} by llguidance, which is not there: {error}",
                    hint="pip install 'edge-vlm[schema]'",
                ) from error
            self._grammars = Grammars(self._tokenizer, self._spec.decoder.vocab, self._spec.prompt.stop_ids)
        return self._grammars.guide(wanted)
