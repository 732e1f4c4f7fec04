"""One file more in a folder of alternatives is a vision encoder, or a projector: nothing else is edited."""

from __future__ import annotations

import json

import torch
from newcomers import newcomers
from safetensors.torch import load_file, save_file

from exporters import standin
from exporters.models import projectors, vision
from exporters.sources.checkpoint import open_checkpoint

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."
EYE = """
from dataclasses import dataclass

from torch import nn

from exporters.models.layers import Conv2d
from exporters.models.source import Source

KIND = "eye"
MODEL_TYPES = ("eye_model",)
CLASS_TOKEN = False
MARKS = r"iris"
PROCESSOR = "CLIPImageProcessor"
PUBLISHED = None
DEFAULTS = {"image_size": 336, "patch_size": 14, "hidden_size": 64}
GGUF_NAMES = None


@dataclass(frozen=True)
class Config:
    image_size: int
    patch_size: int
    hidden: int
    layers: int = 1
    run_layers: int = 1
    heads: int = 1
    cls: bool = False

    @property
    def grid(self):
        return self.image_size // self.patch_size

    @property
    def positions(self):
        return self.grid**2

    @property
    def tokens(self):
        return self.grid**2


def from_config(config, *, select_layer, select_feature):
    told = {**DEFAULTS, **config}
    return Config(told["image_size"], told["patch_size"], told["hidden_size"])


class Tower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.iris = Conv2d(3, config.hidden, config.patch_size, stride=config.patch_size)

    def forward(self, pixels):
        return self.iris(pixels).flatten(2).transpose(1, 2)


def keys(config, prefix):
    return {name: Source((prefix + name,)) for name in ("iris.weight", "iris.bias")}


def ignored(config):
    return r"lid\\..*"
"""
FOLD = """
from dataclasses import asdict, dataclass

from torch import nn

from edge.errors import CheckpointError
from exporters.models.layers import Linear
from exporters.models.projectors import ProjectorConfig

KIND = "fold"
SETTINGS = {"mm_hidden_fold": 2}


@dataclass(frozen=True)
class Config(ProjectorConfig):
    fold: int = 2


def from_config(shape, told):
    if shape.grid % told["mm_hidden_fold"]:
        raise CheckpointError("mm_hidden_fold does not divide the grid", hint="1")
    return Config(**asdict(shape), fold=told["mm_hidden_fold"])


class Projector(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear = Linear(config.inputs * config.fold, config.hidden)
        self.fold = config.fold

    def forward(self, x):
        return self.linear(x.reshape(x.shape[0], -1, x.shape[2] * self.fold))


def tokens(config):
    return config.grid**2 // config.fold
"""


def checkpoint(tmp_path, without, tensors, **config):
    folder = tmp_path / "checkpoint"
    standin.write(folder, standin.SHAPES["tiny"], dtype=torch.float32)
    kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith(without)}
    save_file(kept | tensors, folder / "model.safetensors")
    told = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(told))
    return str(folder)


def test_a_vision_encoder_is_one_file(tmp_path):
    tensors = {
        TOWER + "iris.weight": torch.randn(64, 3, 14, 14),
        TOWER + "iris.bias": torch.randn(64),
        TOWER + "lid.weight": torch.randn(3),
    }
    with newcomers(tmp_path / "more", vision.__name__, {"eye": EYE}):
        told = {"vision_tower_type": "eye", "mm_vision_tower": "own", "vision_config": {"model_type": "eye_model"}}
        found = open_checkpoint(checkpoint(tmp_path, TOWER, tensors, **told))
        seen = found.components["vision"].load(found.weights)
        assert torch.equal(seen.iris.bias, tensors[TOWER + "iris.bias"])
        assert (found.spec.image.size, found.spec.prompt.image_tokens) == (336, 144)
    assert "eye" not in vision.kinds()


def test_a_projector_is_one_file(tmp_path):
    tensors = {PROJECTOR + "linear.weight": torch.randn(64, 256), PROJECTOR + "linear.bias": torch.randn(64)}
    with newcomers(tmp_path / "more", projectors.__name__, {"fold": FOLD}):
        told = {"mm_projector_type": "fold", "mm_hidden_fold": 4}
        found = open_checkpoint(checkpoint(tmp_path, PROJECTOR, tensors, **told))
        projector = found.components["projector"].load(found.weights)
        assert torch.equal(projector.linear.weight, tensors[PROJECTOR + "linear.weight"])
        assert found.spec.prompt.image_tokens == 144 == 24 * 24 // 4
