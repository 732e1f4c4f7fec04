"""Copies of the stand-in in LLaVA's layout, which a test changes, opens, or finds refused."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from edge.errors import CheckpointError
from exporters.sources.checkpoint import open_checkpoint

TOWER = "model.vision_tower.vision_tower.vision_model."
CLIP = {
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "intermediate_size": 96,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


class Copy:
    """A copy of the stand-in that a test may change."""

    def __init__(self, original, folder):
        self.folder = folder
        shutil.copytree(original, folder)

    def config(self, drop=(), **changes):
        return self.json("config.json", drop, **changes)

    def json(self, file, drop=(), **changes):
        path = self.folder / file
        data = (json.loads(path.read_text()) if path.exists() else {}) | changes
        path.write_text(json.dumps({k: v for k, v in data.items() if k not in drop}))
        return self

    @property
    def tensors(self):
        return load_file(self.folder / "model.safetensors")

    def save(self, tensors, folder=None):
        (folder or self.folder).mkdir(exist_ok=True)
        made = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(made, (folder or self.folder) / "model.safetensors")
        return self

    def open(self, **options):
        return open_checkpoint(str(self.folder), **options)

    def refused(self, match, kind=CheckpointError, **options):
        with pytest.raises(kind, match=match) as caught:
            self.open(**options)
        return caught.value

    def move_tower(self, folder, prefix="vision_model.", extra=None):
        tensors = self.tensors
        tower = {prefix + k.removeprefix(TOWER): v for k, v in tensors.items() if k.startswith(TOWER)}
        self.save({k: v for k, v in tensors.items() if not k.startswith(TOWER)})
        return self.save(tower | (extra or {}), folder)


def state(checkpoint, role):
    return checkpoint.components[role].load(checkpoint.weights).state_dict()
