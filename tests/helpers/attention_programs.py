"""Small ExecuTorch programs of one attention with its cache: those of `tests/data/attention` are written with this.

python tests/attention_programs.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "attention"


@dataclass(frozen=True)
class Attention:
    """`kept`: keys and values are put into the cache, which is zeros else. `mask`: one is given to the operator, which
    ours does not take."""

    heads: int
    kv_heads: int
    width: int
    room: int  # positions of the cache
    causal: bool = True
    scale: float | None = None
    kept: bool = True
    mask: bool = False


PROGRAMS = {
    "one": Attention(1, 1, 1, 9),
    "odd": Attention(6, 2, 5, 70),
    "equal": Attention(4, 4, 24, 200),
    "wide": Attention(2, 1, 128, 140),
    "grouped": Attention(32, 4, 64, 96),
    "free": Attention(4, 2, 20, 80, causal=False, scale=0.3),
    "read": Attention(2, 1, 4, 12, kept=False),
    "masked": Attention(2, 2, 8, 16, mask=True),
}


def write(path: Path, of: Attention) -> None:
    """One method: queries, keys and values f32 [1, S, H + 2 KV, D], the first one's position i64 [1] -> f32 [1, S, H,
    D]. Needs torch."""
    import torch
    from executorch.extension.llm.custom_ops.custom_ops import custom_ops_lib

    from exporters.formats.executorch import lower

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("keys", "values"):
                self.register_buffer(name, torch.zeros(1, of.room, of.kv_heads, of.width))

        def forward(self, qkv: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            kernels = getattr(torch.ops, custom_ops_lib.ns)
            start = position[0].item()
            torch._check(start >= 0)
            torch._check(start < of.room)
            torch._check(start + qkv.shape[1] <= of.room)
            q, k, v = qkv.split([of.heads, of.kv_heads, of.kv_heads], dim=2)
            if of.kept:
                kernels.update_cache(k, self.keys, start)
                kernels.update_cache(v, self.values, start)
            mask = torch.zeros(qkv.shape[1], of.room) if of.mask else None
            return kernels.custom_sdpa(q, self.keys, self.values, start, mask, 0, of.causal, of.scale)

    qkv = torch.zeros(1, 3, of.heads + 2 * of.kv_heads, of.width)
    method = lower.Method(Module(), (qkv, torch.tensor([0])), of.room - 1)
    lower.write(path, {"attention": method}, {}, lambda done: None)


if __name__ == "__main__":
    for name, of in PROGRAMS.items():
        write(FOLDER / f"{name}.pte", of)
