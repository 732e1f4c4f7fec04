"""LoRA folders as PEFT and LLaVA's training write them, and what they make of a base, computed in float64."""

from __future__ import annotations

import json
import math

import torch
from safetensors.torch import save_file

WRAP = "base_model.model."


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Tuned:
    """A folder to fill: `low_rank` for each module, `whole` tensors, then `save`."""

    def __init__(self, folder, base, **switches):
        """base: names -> tensors. switches: those of adapter_config.json."""
        self.folder, self.base = folder, base
        self.switches = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "base_model_name_or_path": "some/base",
        } | switches
        self.halves, self.trained, self.merged = {}, {}, dict(base)

    def low_rank(self, module, *, called=None, rank=None, scale=None, seed=0):
        """`module` as the base has it, `called` so by PEFT. rank, scale: where a pattern says another one."""
        name, weight = called or module, self.base[f"{module}.weight"]
        rank = rank or self.switches["r"]
        rooted = math.sqrt(rank) if self.switches.get("use_rslora") else rank
        scale = self.switches["lora_alpha"] / rooted if scale is None else scale
        a, b = drawn(rank, weight.shape[1], seed=seed) * 0.1, drawn(weight.shape[0], rank, seed=seed + 1) * 0.1
        self.halves |= {f"{WRAP}{name}.lora_A.weight": a, f"{WRAP}{name}.lora_B.weight": b}
        made = weight.double() + scale * b.double() @ a.double()
        if self.switches.get("use_dora"):
            size = drawn(weight.shape[0], seed=seed + 2).abs() + 0.5
            self.halves[f"{WRAP}{name}.lora_magnitude_vector"] = size
            made *= (size.double() / made.norm(dim=1))[:, None]
        self.merged[f"{module}.weight"] = made
        return self

    def whole(self, name, called, tensor, file="trained"):
        """`file`: trained (non_lora_trainables.bin) or halves (the adapter's own)."""
        getattr(self, file)[called] = tensor
        self.merged[name] = tensor
        return self

    def save(self, config=None, binary=False):
        self.folder.mkdir()
        (self.folder / "adapter_config.json").write_text(json.dumps(self.switches))
        if binary:
            torch.save(self.halves, self.folder / "adapter_model.bin")
        else:
            save_file(self.halves, self.folder / "adapter_model.safetensors")
        if self.trained:
            torch.save(self.trained, self.folder / "non_lora_trainables.bin")
        if config:
            (self.folder / "config.json").write_text(json.dumps(config))
        return self
