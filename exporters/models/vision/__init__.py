"""Vision encoders: one file for each family, and what they have in common.

A family's file has

- `KIND`, its name in `vision_tower_type` and in the names of published encoders;
- `MODEL_TYPES`, the `model_type`s of its config, of which the first is what a config without one is; none of an encoder
  that one dialect alone has;
- `CLASS_TOKEN`, whether it has one, which `select_feature` "cls_patch" gives too;
- `MARKS`, a pattern of its tensors' names, by which they are found in a checkpoint;
- `PROCESSOR`, the class of transformers that prepares its images where a checkpoint names none;
- `PUBLISHED`, a pattern of names of encoders that need no config, or None: what `completed(fields)` adds to a config
  that is incomplete, and `published(weights, prefix)` reads from the weights' shapes where there is none;
- `DEFAULTS`, which stand for the fields that a config leaves out, as in transformers;
- `from_config(config, *, select_layer, select_feature)`, a config of its own that others ask what VisionConfig says,
  and for `view_shape` where a view is no square of pixels;
- `GGUF_NAMES`, what llama.cpp calls its tensors, or None where no mmproj is written of it;
- `Tower(config)`, the module, with `folding()` (`exporters.models.folding`); `keys(config, prefix)`, where its
  parameters are in a checkpoint; `ignored(config)`, a pattern of the tensors below that prefix which it never computes
  with;
- `tiny()`, the smallest honest one.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Protocol

from edge import plugins
from edge.errors import CheckpointError


class VisionConfig(Protocol):
    """What others may ask of a vision encoder's config."""

    @property
    def image_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def layers(self) -> int:
        """In the checkpoint; `run_layers` of them are computed."""
        ...

    @property
    def run_layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def grid(self) -> int:
        """Patches a side."""
        ...

    @property
    def positions(self) -> int:
        """That attention sees: the patches, and a class token where there is one."""
        ...

    @property
    def cls(self) -> bool:
        """Whether a class token's embedding is given before the patches'."""
        ...

    @property
    def tokens(self) -> int:
        """Embeddings that it gives of an image."""
        ...


def find(model_type: object) -> ModuleType:
    """The family of a vision config's `model_type`. Raises CheckpointError that lists the legal ones."""
    types = {kind: name for name in plugins.names(__name__) for kind in plugins.facts(__name__, name)["MODEL_TYPES"]}
    if not isinstance(model_type, str) or model_type not in types:
        raise CheckpointError(
            f"no vision encoder of the model_type {model_type!r}", hint="one of: " + ", ".join(sorted(types))
        )
    return plugins.load(__name__, types[model_type])


def kinds() -> dict[str, str]:
    """The `KIND` of each family that a checkpoint may name -> a `model_type` of it: an encoder that no config names has
    a dialect of its own."""
    facts = (plugins.facts(__name__, name) for name in plugins.names(__name__))
    return {fact["KIND"]: fact["MODEL_TYPES"][0] for fact in facts if fact["MODEL_TYPES"]}


def family(config: VisionConfig) -> ModuleType:
    """The file that a config is of."""
    return sys.modules[type(config).__module__]
