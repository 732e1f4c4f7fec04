"""PEFT's adapter_config.json: how much of a low-rank product goes into a weight, and what is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge.errors import CheckpointError

NAME = "adapter_config.json"
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
# What went into the training, and which layers were changed: the tensors themselves tell that.
NEUTRAL = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("runtime_config", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
)
# How the two halves began. The others (pissa, olora, corda, loftq, lora_ga) change the base's weights as well.
STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
BIASES = (None, "none", "all", "lora_only")  # trained biases are stored whole
AGAIN = "copy the whole folder that the training wrote"
MERGE = "merge it into its base where it was trained: model.merge_and_unload().save_pretrained(DIR); then export DIR"


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (arXiv 2106.09685), rank-stabilised (2312.03732), with magnitudes (DoRA, 2402.09353)."""

    rank: int
    alpha: float
    rank_stabilised: bool = False
    dora: bool = False
    saved: tuple[str, ...] = ()  # modules that are stored whole
    ranks: Mapping[str, Any] = field(default_factory=dict)  # of some modules: a pattern of their names -> theirs
    alphas: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> LoraConfig:
        """Raises CheckpointError on what is not computed here, by its name."""
        if (kind := told.get("peft_type")) != "LORA":
            raise CheckpointError(f"{NAME} has peft_type {kind!r}, which is not supported: only LORA", hint=MERGE)
        _refuse(told)
        config = cls(
            told.get("r", 8),
            told.get("lora_alpha", 8),
            told.get("use_rslora") is True,
            told.get("use_dora") is True,
            tuple(told.get("modules_to_save") or ()),
            told.get("rank_pattern") or {},
            told.get("alpha_pattern") or {},
        )
        for rank in (config.rank, *config.ranks.values()):
            if type(rank) is not int or rank < 1:
                raise CheckpointError(f"{NAME} has a rank of {rank!r}", hint=AGAIN)
        for alpha in (config.alpha, *config.alphas.values()):
            if type(alpha) not in (int, float) or not math.isfinite(alpha):
                raise CheckpointError(f"{NAME} has a lora_alpha of {alpha!r}", hint=AGAIN)
        return config

    def rank_of(self, module: str) -> int:
        """`module` is its name in the model that was trained."""
        return int(_matching(self.ranks, module, self.rank))

    def scale(self, module: str) -> float:
        """What the product of the halves is multiplied with."""
        rank = self.rank_of(module)
        alpha = float(_matching(self.alphas, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _refuse(told: Mapping[str, Any]) -> None:
    own = {"fan_in_fan_out": (None, False), "init_lora_weights": STARTS, "bias": BIASES}
    switches = dict.fromkeys(("use_rslora", "use_dora"), (None, False, True))
    for key, value in told.items():
        known = {**own, **switches}.get(key)
        if known is not None:
            fits = any(value is one or (isinstance(one, str) and value == one) for one in known)
        else:
            fits = key in (*READ, *NEUTRAL) or not value
        if not fits:
            raise CheckpointError(f"{NAME} has {key} {value!r}, which is not supported", hint=MERGE)
    shapes = {"modules_to_save": list, "rank_pattern": dict, "alpha_pattern": dict}
    for key, kind in shapes.items():
        value = told.get(key)
        if value is not None and not (isinstance(value, kind) and all(isinstance(one, str) for one in value)):
            raise CheckpointError(f"{NAME} has {key} {value!r}", hint=AGAIN)


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """As PEFT looks it up: the first pattern that is the end of the name, from a dot on."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise CheckpointError(f"{NAME} has a pattern {pattern!r}: {error}", hint=AGAIN) from error
    return default
