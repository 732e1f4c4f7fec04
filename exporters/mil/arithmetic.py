"""Operations of MIL that compute: each takes its arguments by MIL's names, halves widened to float32 (but a `weight` as
it is stored), and gives float32 that the caller rounds.

As coremltools defines them (coremltools.converters.mil.mil.ops.defs).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edge.errors import EngineError

_AT_ONCE = 1 << 20  # numbers of a weight: wide, they stay in a processor's cache
_LETTERS = re.compile(r"(.)(.)(.)(.),\1(.)\3(.)->.{4}")
_ACTIVATIONS = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """weight `[N, K]`, as it is stored: it is widened a few rows at a time, in memory that is used again."""
    parts = [F.linear(x, rows.float()) for rows in weight.split(max(1, _AT_ONCE // weight.shape[1]))]
    y = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    return y if bias is None else y + bias


def matmul(x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None) -> Tensor:
    x = x.mT if transpose_x is not None and bool(transpose_x) else x
    y = y.mT if transpose_y is not None and bool(transpose_y) else y
    return x @ y


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """x `[B, C, H, W]`, weight `[out, C / groups, h, w]`; pad (top, bottom, left, right)."""
    if x.ndim != 4:
        raise EngineError(f"conv of rank {x.ndim} is not known")
    x = _padded(x, pad_type, pad)
    ones = [1, 1]
    stride, apart = _ints(strides, ones), 1 if groups is None else int(groups)
    if (stride, apart, list(weight.shape[2:])) == (
        ones,
        1,
        ones,
    ):  # a product: quick, and its weight is not widened whole
        return linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    return F.conv2d(x, weight.float(), bias, stride=stride, dilation=_ints(dilations, ones), groups=apart)


def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    if pad_type != "valid" and not (pad_type == "custom" and not bool(torch.any(_given(pad)))):
        raise EngineError(f"avg_pool with the padding {pad_type!r} is not known")
    if ceil_mode is not None and bool(ceil_mode):
        raise EngineError("avg_pool with ceil_mode is not known")
    return F.avg_pool2d(x, _ints(kernel_sizes, []), _ints(strides, [1, 1]))


def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    if axes is None or axes.numel() != 1:
        raise EngineError("layer_norm over several axes is not known")
    last = x.movedim(int(axes), -1)
    y = F.layer_norm(last, last.shape[-1:], gamma, beta, 1e-5 if epsilon is None else float(epsilon))
    return y.movedim(-1, int(axes))


def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """Products along the last axis but two of the second: `nchw,nwhu->nchu`, in any letters."""
    if _LETTERS.fullmatch(equation.replace(" ", "")) is None:
        raise EngineError(f"einsum of {equation!r} is not known")
    return torch.einsum(equation, *values)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Written out: torch's own may take another path for each processor."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(dim=-1) @ value


def softmax(x: Tensor, axis: Tensor | None = None) -> Tensor:
    return x.softmax(dim=-1 if axis is None else int(axis))


def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def sub(x: Tensor, y: Tensor) -> Tensor:
    return x - y


def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def real_div(x: Tensor, y: Tensor) -> Tensor:
    return x / y


def maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


def minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(x, y)


def pow(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y)


def abs(x: Tensor) -> Tensor:
    return x.abs()


def sqrt(x: Tensor) -> Tensor:
    return x.sqrt()


def rsqrt(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.rsqrt(x + (1e-12 if epsilon is None else epsilon))


def exp(x: Tensor) -> Tensor:
    return x.exp()


def tanh(x: Tensor) -> Tensor:
    return x.tanh()


def relu(x: Tensor) -> Tensor:
    return x.relu()


def sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid()


def sigmoid_hard(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def silu(x: Tensor) -> Tensor:
    return F.silu(x)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    if mode not in _ACTIVATIONS:
        raise EngineError(f"gelu with the mode {mode!r} is not known")
    return F.gelu(x, approximate=_ACTIVATIONS[mode])


def reduce_mean(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    return x.mean(dim=_axes(x, axes), keepdim=keep_dims is not None and bool(keep_dims))


def reduce_sum(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    return x.sum(dim=_axes(x, axes), keepdim=keep_dims is not None and bool(keep_dims))


def reduce_max(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    return x.amax(dim=_axes(x, axes), keepdim=keep_dims is not None and bool(keep_dims))


def _axes(x: Tensor, axes: Tensor | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else _ints(axes, [])


def _ints(value: Tensor | None, default: list[int]) -> list[int]:
    return default if value is None else [int(v) for v in value.reshape(-1).tolist()]


def _given(value: Tensor | None) -> Tensor:
    if value is None:
        raise EngineError("a padding is custom, and not said")
    return value


def _padded(x: Tensor, pad_type: str, pad: Tensor | None) -> Tensor:
    if pad_type == "valid":
        return x
    if pad_type != "custom":
        raise EngineError(f"conv with the padding {pad_type!r} is not known")
    top, bottom, left, right = _ints(_given(pad), [])
    return F.pad(x, (left, right, top, bottom))


TABLE = {
    function.__name__: function
    for function in (
        linear,
        matmul,
        conv,
        avg_pool,
        layer_norm,
        einsum,
        scaled_dot_product_attention,
        softmax,
        add,
        sub,
        mul,
        real_div,
        maximum,
        minimum,
        pow,
        abs,
        sqrt,
        rsqrt,
        exp,
        tanh,
        relu,
        sigmoid,
        sigmoid_hard,
        silu,
        gelu,
        reduce_mean,
        reduce_sum,
        reduce_max,
    )
}
