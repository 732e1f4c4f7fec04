"""What linear layers are multiplied with: watched while a module computes, and remembered in part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models.layers import Linear

Seen = Callable[[str, Tensor], None]  # a layer's path, and its input as rows [N, K]


@contextmanager
def watching(module: nn.Module, seen: Seen, paths: Collection[str] | None = None) -> Iterator[None]:
    """Each linear layer of `paths`, or of all, gives its input before it computes."""

    def watch(path: str, layer: Linear) -> torch.utils.hooks.RemovableHandle:
        def before(_: nn.Module, inputs: tuple[Tensor]) -> None:
            seen(path, inputs[0].reshape(-1, layer.in_features))

        return layer.register_forward_pre_hook(before)

    found = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, Linear)]
    handles = [watch(path, layer) for path, layer in found if paths is None or path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Inputs:
    """Of one linear layer with K columns: for each pass some rows `[n, K]`, and each column's least and largest `[K]`
    of all rows, float32."""

    rows: list[Tensor] = field(default_factory=list)
    least: list[Tensor] = field(default_factory=list)
    largest: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor, count: int) -> None:
        """`count` of the rows, evenly spaced, and the one with the largest number: a massive activation is in few."""
        least, largest = torch.aminmax(rows, dim=0)
        chosen = torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()
        top = rows.abs().amax(dim=1).argmax()
        self.rows.append(rows[torch.cat([chosen, top[None]]).unique()].clone())
        self.least.append(least.clone())
        self.largest.append(largest.clone())


def observe(
    module: nn.Module, paths: Collection[str], passes: Mapping[str, Callable[[], object]], rows: int
) -> dict[str, Inputs]:
    """What the linear layers at `paths` are multiplied with in the passes (what each is of -> what computes it).

    rows: how many are kept of each layer, of all passes together. Raises CheckpointError where an input is not finite.
    """
    found = {path: Inputs() for path in paths}
    for name, compute in passes.items():

        def seen(path: str, inputs: Tensor, name: str = name) -> None:
            found[path].add(inputs, max(1, rows // len(passes)))
            # The least and the largest tell of all; a NaN comes through.
            if not bool((found[path].least[-1].isfinite() & found[path].largest[-1].isfinite()).all()):
                raise CheckpointError(
                    f"what {path} is multiplied with is NaN or infinite on {name}, of finite weights",
                    hint="its values outgrow float32: was the training stable, or the checkpoint scaled?",
                )

        with watching(module, seen, paths), torch.inference_mode():
            compute()
    return found
