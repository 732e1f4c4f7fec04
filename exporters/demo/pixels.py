"""Scenes to the tower's input, as MobileVLM's own preprocessing makes it (the pictures already have its size)."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from exporters.demo.world import Scene, draw

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def pixels(pictures: list[Image.Image], device: torch.device) -> Tensor:
    """`[B, 3, 336, 336]` float32."""
    batch = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).to(device)
    batch = batch.permute(0, 3, 1, 2).float() / 255
    return (batch - batch.new_tensor(MEAN)[:, None, None]) / batch.new_tensor(STD)[:, None, None]


def drawn(scenes: list[Scene], device: torch.device) -> Tensor:
    """The pixels of freshly drawn scenes."""
    return pixels([draw(scene) for scene in scenes], device)
