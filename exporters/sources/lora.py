"""A fine-tune that is stored as what it changes: a LoRA folder of PEFT or LLaVA, merged into its base's weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edge.errors import CheckpointError
from exporters.models.component import Component
from exporters.sources import adapters, lora_config
from exporters.sources.lora_config import AGAIN, LoraConfig
from exporters.sources.low_rank import LowRank
from exporters.sources.weights import Stored, Weights, listed

log = logging.getLogger(__name__)
LOW_RANK = ("adapter_model.safetensors", "adapter_model.bin")
TRAINED = "non_lora_trainables.bin"
# What lies beside weights and is none of the model's.
TRAINING = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler|rng_state(_\d+)?)\.(pt|pth|bin)")
PARTS = ("language_model", "vision_tower", "connector")  # TinyLLaVA-Factory writes them into folders of their own
_HALF = re.compile(
    r"(?P<module>.+)\.lora_(?P<half>A|B|embedding_A|embedding_B|magnitude_vector)(\.default)?(\.weight)?"
)
# Of a config.json: what a decoder computes otherwise though its weights have the same shapes.
COMPUTED = ("num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling")
# What versions of transformers call the same; PEFT has the names of the model in memory, a base those of its file.
SAME = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower."),
)


@dataclass(frozen=True)
class Adapter:
    folder: Path
    config: Mapping[str, Any]  # config.json of the whole model; empty: the base's is it
    base: str | None  # what it says that it was trained on
    low_rank: Mapping[str, LowRank]  # by module
    whole: Mapping[str, Stored]
    files: tuple[Path, ...]

    @classmethod
    def open(cls, folder: Path, switches: Mapping[str, Any], config: Mapping[str, Any]) -> Adapter:
        """`switches` is adapter_config.json, `config` config.json; each is empty where there is none. Raises
        CheckpointError on half a folder, what is not finite, and what is not understood."""
        paths = _files(folder, bool(switches), config)
        opened = {path.name: Weights.file(path) for path in paths}
        _require_finite(opened)
        lora = LoraConfig.read(switches) if switches else None
        halves: dict[str, dict[str, Stored]] = {}
        whole: dict[str, Stored] = {}
        for file, weights in opened.items():
            for name in weights:
                half = _HALF.fullmatch(name) if file in LOW_RANK else None
                if half is None:
                    _add(whole, _plain(name), weights.stored(name), file)
                    continue
                found = halves.setdefault(_plain(half["module"]), {})
                if half["half"] in found:
                    raise CheckpointError(f"{file} has lora_{half['half']} of {half['module']!r} twice", hint=AGAIN)
                found[half["half"]] = weights.stored(name)
        if lora:
            _require_saved(lora, whole)
        low_rank = {module: LowRank.of(module, found, lora) for module, found in halves.items() if lora}
        told = switches.get("base_model_name_or_path")
        return cls(folder, config, told if isinstance(told, str) else None, low_rank, whole, tuple(paths))

    def onto(self, base: Weights) -> Weights:
        """The base's weights with this in them; what is not asked for is not computed. Raises CheckpointError that
        names what the base has not, or in another shape."""
        changed: dict[str, Stored] = {}
        multiplied: dict[str, str] = {}
        faults = []
        for name, stored in self.whole.items():
            spelled = _spelled(name, base) or name  # a projector or a vision encoder may be new
            if spelled in base and base.shape(spelled) != stored.shape:
                faults.append(f"{name} {list(stored.shape)}, the base's is {list(base.shape(spelled))}")
            changed[spelled] = stored
        for module, product in self.low_rank.items():
            spelled = _spelled(f"{module}.weight", base) or ""
            if not spelled:
                faults.append(f"{module}, which the base has not")
                continue
            under = changed.get(spelled) or base.stored(spelled)
            if spelled in multiplied:
                faults.append(f"{module}, which is {multiplied[spelled]} by another name")
            multiplied[spelled] = module
            if product.shape != under.shape:
                faults.append(f"{module} {list(product.shape)}, the base's is {list(under.shape)}")
            changed[spelled] = Stored(under.shape, torch.float32, partial(product.merged, under.read))
        if faults:
            raise self._another("it changes\n  " + listed(faults, "\n  "))
        return base.merged(Weights(changed, self.files))

    def compare(self, told: Mapping[str, Any], name: str) -> None:
        """With the base's config.json: raises CheckpointError where shapes do not tell that decoders differ. Another
        `name` than that of the base it was trained on is only told."""
        if self.base and re.split(r"[/\\]", self.base.rstrip("/\\"))[-1] != name:
            log.warning("%s was trained on %r, and --base is %r", self.folder, self.base, name)
        for key in COMPUTED:
            if key in told and key in self.config and told[key] != self.config[key]:
                raise self._another(f"its config.json has {key} {self.config[key]!r}, the base's {told[key]!r}")

    def require_used(self, components: Mapping[str, Component], merged: Weights) -> None:
        """Raises CheckpointError where something is changed that the model does not have, or that is embedding table
        and head in one. Of the vision encoder, layers may be changed of which no feature is taken."""
        used = {name for part in components.values() for source in part.keys.values() for name in source.names}
        table, head = (components["decoder"].keys[f"{name}.weight"].names for name in ("embed_tokens", "lm_head"))
        for changed in (*self.whole, *(f"{module}.weight" for module in self.low_rank)):
            name, why = _spelled(changed, merged) or changed, ""
            if name in table and table == head:
                why = "which is embedding table and head in one"
            elif name not in used and "vision_tower." not in name:
                why = "which nothing uses"
            if why:
                raise CheckpointError(f"{str(self.folder)!r} changes {changed!r}, {why}", hint=lora_config.MERGE)

    def _another(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{str(self.folder)!r} was trained on another base: {why}",
            hint=f"--base {self.base}, which it names" if self.base else "--base CKPT, the one it was trained on",
        )


def _files(folder: Path, switched: bool, config: Mapping[str, Any]) -> list[Path]:
    """Those with weights. Raises CheckpointError where some are missing, or more are there than are read."""
    found = adapters.weight_files(folder)
    read = [next(filter(found.__contains__, LOW_RANK), ""), TRAINED, adapters.PROJECTOR]
    read = [name for name in read if name in found]
    low_rank = bool(read) and read[0] in LOW_RANK
    missing = None
    if low_rank and not switched:
        missing = lora_config.NAME
    elif not low_rank and (switched or TRAINED in read):
        missing = " or ".join(LOW_RANK)
    elif low_rank and "mm_vision_tower" in config and TRAINED not in read:
        missing = f"{TRAINED}, which LLaVA's training writes beside config.json"
    if missing:
        raise CheckpointError(f"{str(folder)!r} is half a LoRA folder: it lacks {missing}", hint=AGAIN)
    inside = [f"{part}/{name}" for part in PARTS for name in adapters.weight_files(folder / part)]
    if more := [name for name in (*found, *inside) if name not in read and not TRAINING.fullmatch(name)]:
        raise CheckpointError(
            f"{str(folder)!r} has weights that are not read with a base: {listed(more)}",
            hint=f"move them away if they are not part of the model; else {lora_config.MERGE}",
        )
    return [folder / name for name in read]


def _require_finite(opened: Mapping[str, Weights]) -> None:
    for file, weights in opened.items():
        if spoilt := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise CheckpointError(
                f"{file} has numbers that are not finite: {listed(spoilt)}", hint="the training failed: repeat it"
            )


def _require_saved(lora: LoraConfig, whole: Mapping[str, Stored]) -> None:
    for module in lora.saved:
        if not any(f".{module}." in f".{name}" for name in whole):
            raise CheckpointError(
                f"{lora_config.NAME} has {module!r} in modules_to_save, and the adapter holds no such tensor",
                hint=AGAIN,
            )


def _add(whole: dict[str, Stored], name: str, stored: Stored, file: str) -> None:
    if ".lora_" in f".{name}" or "modules_to_save." in name or ".token_adapter." in name:
        raise CheckpointError(f"{file} has {name!r}, which is not understood", hint=lora_config.MERGE)
    if (other := whole.get(name)) and not (other.shape == stored.shape and torch.equal(other.read(), stored.read())):
        raise CheckpointError(f"two files disagree about {name!r}, {file} is one", hint="move the older file away")
    whole[name] = stored


def _plain(name: str) -> str:
    """Without what PEFT and LLaVA's training wrap around a model."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return name.removeprefix("model.") if name.startswith(("model.model.", "model.lm_head.")) else name


def _spelled(name: str, weights: Weights) -> str | None:
    """What these weights call it; None: they have none."""
    return next((other for other in _spellings(name) if other in weights), None)


def _spellings(name: str) -> Iterator[str]:
    yield name
    for prefixes in SAME:
        for prefix in prefixes:
            if name.startswith(prefix):
                yield from (other + name.removeprefix(prefix) for other in prefixes)
