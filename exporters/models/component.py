"""A component: a torch module that knows which tensors of a checkpoint are its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from edge.errors import CheckpointError
from exporters.models.room import Room
from exporters.models.source import Source

if TYPE_CHECKING:
    from exporters.sources.weights import Weights


@dataclass(frozen=True)
class Component:
    """`keys` maps each parameter of the module to the checkpoint's tensors that make it, and how."""

    role: str
    build: Callable[[], nn.Module]
    keys: Mapping[str, Source]

    @property
    def covers(self) -> tuple[str, ...]:
        """The roles that a part made of it plays in a bundle: encoder and projector are one."""
        return ("vision", "projector") if self.role == "vision" else (self.role,)

    def skeleton(self) -> nn.Module:
        """The module without numbers, on the meta device: for tracing, and for its shapes. Built once and shared: who
        gives it numbers or takes it apart wants a `blank()`."""
        return self._skeleton

    @cached_property
    def _skeleton(self) -> nn.Module:
        return self.blank()

    def blank(self) -> nn.Module:
        """A skeleton of the caller's own."""
        with torch.device("meta"):
            return self.build().eval().requires_grad_(False)

    def of(self, role: str) -> Component:
        """The same in another role."""
        return self if role == self.role else replace(self, role=role)

    @property
    def weights(self) -> int:
        """How many numbers the module has; an embedding table that is the head too counts twice."""
        return sum(math.prod(tensor.shape) for tensor in self.skeleton().state_dict().values())

    def check(self, weights: Weights) -> None:
        """Compare names and shapes without reading a tensor. Raises CheckpointError that lists what is off."""
        problems = []
        for name, parameter in self.skeleton().state_dict().items():
            source = self.keys[name]
            if missing := [key for key in source.names if key not in weights]:
                problems += [f"missing: {key}" for key in missing]
                continue
            try:
                made, why = source.shape(weights.shape), ""
            except ValueError as error:
                made, why = (), f": {error}"
            if why or made != tuple(parameter.shape):
                found = ", ".join(f"{key} {list(weights.shape(key))}" for key in source.names)
                problems.append(f"wrong shape: {found}; expected {list(parameter.shape)} in all{why}")
        if problems:
            raise CheckpointError(
                f"the weights do not fit the {self.role} that the checkpoint describes:\n  " + "\n  ".join(problems),
                hint="is the checkpoint complete, and does its description (config.json) belong to it?",
            )

    def load(self, weights: Weights, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The module with its numbers, in `dtype`, read one by one: in memory, or in mapped files where that is too
        small for them."""
        self.check(weights)
        module = self.blank()
        empty = module.state_dict()
        room = Room((tuple(tensor.shape) for tensor in empty.values()), dtype)
        state = {name: room.keep(self.keys[name].load(weights.__getitem__, dtype)) for name in empty}
        module.load_state_dict(state, assign=True)
        return module
