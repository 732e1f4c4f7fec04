"""The loop that the three stages share: optimiser, learning rate, resumable state, log."""

import logging
import math
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger("demo")


class Stage(Protocol):
    """What a stage brings: the module it trains, the loss of a step, and a report now and then."""

    @property
    def module(self) -> nn.Module:
        """What is trained, saved and resumed."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of the batch that belongs to this step (the batch follows from the step alone), and numbers to log."""

    def report(self, step: int) -> None:
        """Measure and log accuracy; write whatever the next stage needs."""


@dataclass(frozen=True)
class Schedule:
    """Warm-up, a plateau, and a linear fall to zero over the last part."""

    steps: int
    rate: float
    warmup: int = 50
    fall: float = 0.35

    def at(self, step: int) -> float:
        falling = (self.steps - step) / (self.steps * self.fall)
        return self.rate * min(1.0, (step + 1) / self.warmup, max(0.0, falling))


def optimisers(module: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for tables, heads, convolutions, norms and biases.

    Muon's updates are scaled to AdamW's size, so that one learning rate serves both.
    """
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        table = any(part in name for part in ("embed", "lm_head"))
        (inner if parameter.ndim == 2 and not table else outer).append(parameter)
    return [
        torch.optim.Muon(inner, lr=1.0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(stage: Stage, schedule: Schedule, state_file: Path, every: int, device: torch.device) -> None:
    """Run the stage from its last saved step to its end; safe to interrupt at any moment."""
    chosen = optimisers(stage.module)
    step = spent = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        stage.module.load_state_dict(state["module"])
        for optimiser, saved in zip(chosen, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, spent = state["step"], state["seconds"]
        log.info("resumed at step %d", step)
    begin = time.monotonic() - spent
    sums: dict[str, float] = defaultdict(float)
    since = step
    while step < schedule.steps:
        for optimiser in chosen:
            for group in optimiser.param_groups:
                group["lr"] = schedule.at(step)
        with torch.autocast(device.type, torch.bfloat16):
            loss, numbers = stage.loss(step)
        loss.backward()
        nn.utils.clip_grad_norm_(stage.module.parameters(), 1.0)
        for optimiser in chosen:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(f"the loss is {value} at step {step}; lower the learning rate")
        for name, number in {"loss": value, **numbers}.items():
            sums[name] += number
        step += 1
        if step % 25 == 0:
            means = "  ".join(f"{name} {total / (step - since):.4f}" for name, total in sums.items())
            log.info("step %d  %.1f min  %s", step, (time.monotonic() - begin) / 60, means)
            sums.clear()
            since = step
        if step % every == 0 or step == schedule.steps:
            save(
                {
                    "module": stage.module.state_dict(),
                    "optimisers": [optimiser.state_dict() for optimiser in chosen],
                    "step": step,
                    "seconds": time.monotonic() - begin,
                },
                state_file,
            )
            stage.module.eval()
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                stage.report(step)
            stage.module.train()


def save(state: dict[str, object], path: Path) -> None:
    """Write beside the place and rename: a half-written file never bears the name."""
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)
