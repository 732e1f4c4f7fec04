"""Language models: one file for each family, and what they have in common.

`Family` says what a family's file holds. Others take the family that they were given, by `find` or `family`, and name
none themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, cast

from torch import Tensor, nn

from edge import plugins
from edge.errors import CheckpointError
from exporters.models.attention import Attend, Rope
from exporters.models.folding import Folding
from exporters.models.source import Source


class DecoderConfig(Protocol):
    """What others may ask of a family's config, which is a frozen dataclass of its own."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def gated(self) -> bool:
        """Whether the feed-forward layers multiply two products, gate and up."""
        ...

    @property
    def eps(self) -> float: ...
    @property
    def rope(self) -> Rope: ...
    @property
    def tied(self) -> bool:
        """Whether the head is the embedding table."""
        ...


class LanguageModel(nn.Module):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32.

    A family computes with `exporters.models.layers` and `exporters.models.ops`, and leaves positions and memory to
    `attend`: so it needs no code of its own in any format. Its embedding table is `embed_tokens`, its head `lm_head`.
    """

    lm_head: nn.Linear

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)

    def forward(self, inputs_embeds: Tensor, attend: Attend, everywhere: bool = False) -> Tensor:
        raise NotImplementedError

    def folding(self) -> Folding:
        """Where a channel's scale can be moved behind it."""
        raise NotImplementedError


class Rows(NamedTuple):
    """A tensor of a GGUF file, and how many rows of a module's parameter it is."""

    name: str
    rows: int
    heads: int = 0  # above 0: the rows are those of so many rotary heads, which llama.cpp rotates as neighbours


class Family(Protocol):
    """A file of this folder."""

    KIND: str  # its name
    MODEL_TYPES: tuple[str, ...]  # the `model_type`s of a config.json whose language model it is
    ARCHITECTURE: str  # `general.architecture` of its GGUF files

    def from_config(self, config: Mapping[str, Any]) -> DecoderConfig:
        """From a config.json in transformers' names, with transformers' defaults. Raises CheckpointError."""
        ...

    def left_out(self, config: Mapping[str, Any]) -> dict[str, int]:
        """The sizes that a config.json does not tell, as `from_config` has them."""
        ...

    def from_gguf(
        self,
        own: Callable[..., Any],
        tensors: Collection[str],
        vocab: int,
        scaling: Mapping[str, Any] | None,
    ) -> DecoderConfig:
        """From the settings of a GGUF file.

        own: `own(key, default)` reads one of the architecture's, and raises CheckpointError where neither is there.
        tensors: the names of the tensors that the file holds.
        vocab: the rows of its embedding table.
        scaling: of the rotation, as `exporters.models.attention.Rope` has it.
        """
        ...

    def Decoder(self, config: Any) -> LanguageModel: ...

    def keys(self, config: Any, prefix: str = "model.") -> dict[str, Source]:
        """Each parameter's tensors in a checkpoint in transformers' layout."""
        ...

    def gguf_tensors(self, config: Any) -> dict[str, tuple[Rows, ...]]:
        """Each parameter of the module -> what it is in a GGUF file, from its first row on, piece by piece in the order
        of `keys`. A tied head is none there."""
        ...

    def gguf_settings(self, config: Any) -> dict[str, float]:
        """The architecture's settings beyond the sizes that every family has: floats, whole numbers or flags, as
        llama.cpp reads them. Where it can rotate a part of each head, `rope.dimension_count` is among them."""
        ...

    def tiny(self) -> LanguageModel:
        """The smallest honest one, with random weights."""
        ...


def find(model_type: str) -> Family:
    """The family of a `model_type` of a config.json. Raises CheckpointError that lists the known ones."""
    listed = _listed("MODEL_TYPES")
    if model_type not in listed:
        raise CheckpointError(
            f"no decoder for the model_type {model_type!r}", hint="one of: " + ", ".join(sorted(listed))
        )
    return listed[model_type]()


def of_architecture(name: str) -> Family | None:
    """The family whose GGUF files have this `general.architecture`, None where there is none. Where several write the
    same, the one that bears its name reads them."""
    made = _listed("ARCHITECTURE").get(name)
    return made() if made else None


def family(config: DecoderConfig) -> Family:
    """The family that a config is of."""
    return cast("Family", sys.modules[type(config).__module__])


def _listed(fact: str) -> dict[str, Callable[[], Family]]:
    """What a fact of the families lists -> what loads the family."""
    found: dict[str, Callable[[], Family]] = {}
    for name in plugins.names(__name__):
        told = plugins.facts(__name__, name)[fact]
        for entry in (told,) if isinstance(told, str) else told:
            if entry in found and entry != name:
                continue
            found[entry] = lambda name=name: cast("Family", plugins.load(__name__, name))  # type: ignore[misc]
    return found
