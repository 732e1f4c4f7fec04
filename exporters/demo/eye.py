"""Stage "eye": the tower and the projector learn to write the code of what each cell of the picture holds."""

import logging

import torch
from torch import Tensor, nn

from exporters.demo.codes import ATTRIBUTES, CELL_OF, CODED, Codebook, labels
from exporters.demo.model import Eye, Shape
from exporters.demo.pixels import drawn
from exporters.demo.world import scene

log = logging.getLogger("demo")


class EyeStage:
    """Crowded pictures, patches that see only their own cell at first, all patches in the last part."""

    def __init__(self, shape: Shape, batch: int, windowed_until: int, device: torch.device) -> None:
        self.module = Eye(shape).to(device)
        self.module.tower.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")
        self.codebook = Codebook(shape.hidden).to(device)
        self.batch, self.windowed_until, self.device = batch, windowed_until, device

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        first = step * self.batch
        scenes = [scene("train", first + i, crowded=i % 4 != 0) for i in range(self.batch)]
        marks = torch.tensor([labels(s) for s in scenes], device=self.device)
        rows = self.module(drawn(scenes, self.device), windowed=step < self.windowed_until)
        loss, right = code_loss(rows.float(), marks, self.codebook)
        return loss, {name: float(value) for name, value in right.items()}

    def report(self, step: int) -> None:
        scenes = [scene("watch", i) for i in range(64)]
        marks = torch.tensor([labels(s) for s in scenes], device=self.device)
        for windowed in (True, False):
            rows = torch.cat(
                [self.module(drawn(scenes[i : i + 16], self.device), windowed=windowed) for i in range(0, 64, 16)]
            )
            loss, right = code_loss(rows.float(), marks, self.codebook)
            wrong = "  ".join(f"{name} {100 - 100 * float(value):.2f}" for name, value in right.items())
            log.info("eye watch (windowed %s) step %d: loss %.4f, wrong %%: %s", windowed, step, float(loss), wrong)


def code_loss(rows: Tensor, marks: Tensor, codebook: Codebook) -> tuple[Tensor, dict[str, Tensor]]:
    """Image rows `[B, 144, H]` against labels `[B, 9, 5]`: the loss, and the share of right cells by attribute."""
    coded = rows[:, CODED]  # [B, 36, H]
    wanted = marks[:, CELL_OF]  # [B, 36, 5]
    loss = (rows - codebook.image(marks)).square().mean()
    right = {}
    for index, name in enumerate(ATTRIBUTES):
        scores = codebook.scores(coded, name)
        loss = loss + nn.functional.cross_entropy(scores.flatten(0, 1), wanted[..., index].flatten())
        if index < 3:
            right[name] = (scores.argmax(-1) == wanted[..., index]).float().mean()
    return loss, right
