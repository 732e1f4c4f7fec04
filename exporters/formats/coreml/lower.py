"""Say a recorded graph in MIL, Core ML's language of ML programs: half precision, and fp32 where that overflows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, cast

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var, types
from torch import fx, nn
from torch.nn import functional as F

from edge.errors import EdgeError
from exporters.formats.coreml import trace
from exporters.formats.coreml.kv_states import Memory
from exporters.formats.coreml.weights import Weights
from exporters.models.ops import UNSEEN
from exporters.models.pooling import windows

HALF, FLOAT = types.fp16, types.fp32


class Weight(str):
    """A tensor of the module by its name, until an operation needs it."""

    __slots__ = ()


class Lowering:
    """Runs a graph with variables of the MIL function that is being built."""

    axis = -1  # of the features

    def __init__(
        self,
        graph: fx.Graph,
        module: nn.Module,
        weights: Weights,
        wide: Set[str],
        memory: Memory | None = None,
    ) -> None:
        self._graph = graph
        self._module = module
        self._weights = weights
        self._wide_nodes = wide
        self._memory = memory
        self._wide = False  # of the operation that is being said

    def run(self, x: Var, done: Callable[[float], None]) -> Var:
        """`x` is the graph's input in half precision."""
        values: dict[fx.Node, Any] = {}
        nodes = list(self._graph.nodes)
        for index, node in enumerate(nodes, 1):
            if node.op == "output":
                return cast("Var", fx.node.map_arg(node.args[0], values.__getitem__))
            values[node] = x if node.op == "placeholder" else self._say(node, values)
            done(index / len(nodes))
        raise AssertionError("a graph without an output")

    def _say(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return Weight(node.target)
        args: Any = fx.node.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
        target: Any = node.target
        leaf: Any = None
        if node.op == "call_module":
            leaf = self._module.get_submodule(target)
            said, args = _MODULES.get(type(leaf)), (leaf, target, *args)
        else:
            said = (_FUNCTIONS if node.op == "call_function" else _METHODS).get(target)
        if said is None:
            name = type(leaf).__name__ if node.op == "call_module" else getattr(target, "__name__", target)
            raise EdgeError(
                f"Core ML: there is no rule for {name!r}, which the model uses",
                hint="another --format, and report this",
            )
        flat = [*args, *kwargs.values()]
        self._wide = node.name in self._wide_nodes or any(isinstance(v, Var) and v.dtype == FLOAT for v in flat)
        if self._wide:
            args, kwargs = fx.node.map_aggregate((args, kwargs), self._widened)
        result = self.apply(said, args, kwargs)
        if isinstance(result, Var) and result.dtype == FLOAT and node.name not in self._wide_nodes:
            return self.cast(result, "fp16")
        return result

    def _widened(self, value: Any) -> Any:
        return self.cast(value, "fp32") if isinstance(value, Var) and value.dtype == HALF else value

    def apply(self, rule: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return getattr(self, rule)(*args, **kwargs)

    def cast(self, x: Var, dtype: str) -> Var:
        return mb.cast(x=x, dtype=dtype)

    # What the rules below are made of.

    def number(self, value: float) -> np.floating[Any]:
        return np.float32(value) if self._wide else np.float16(value)

    def operand(self, value: Any) -> Any:
        """A variable or a number of the operation's own type."""
        if isinstance(value, Weight):
            return self._weights.plain(value, self._wide)
        return self.number(value) if isinstance(value, int | float) else value

    def linear(self, x: Var, weight: Weight, bias: Weight | None) -> Var:
        product = self._weights.product(weight, self._wide)
        return mb.linear(x=x, weight=product, bias=self.bias(bias, product.shape[0]))

    def bias(self, bias: Weight | None, count: int) -> Var:
        # One is written in any case, and coremltools' own is fp32.
        if bias is None:
            return self._weights.array(f"zeros.{count}", np.zeros(count), self._wide)
        return cast("Var", self.operand(bias))

    def layer_norm(self, x: Var, weight: Weight, bias: Weight, eps: float) -> Var:
        gamma, beta = self.operand(weight), self.operand(bias)
        return mb.layer_norm(x=x, axes=[self.axis], gamma=gamma, beta=beta, epsilon=self.number(eps))

    def rms_norm(self, x: Var, weight: Weight, eps: float) -> Var:
        """Divided by its largest value first: a square of more than 255 is beyond half precision."""
        largest = mb.reduce_max(x=mb.abs(x=x), axes=[self.axis], keep_dims=True)
        largest = mb.maximum(x=largest, y=self.number(1e-4))
        y = mb.real_div(x=x, y=largest)
        small = mb.real_div(x=self.number(eps**0.5), y=largest)
        mean = mb.reduce_mean(x=mb.mul(x=y, y=y), axes=[self.axis], keep_dims=True)
        mean = mb.add(x=mean, y=mb.mul(x=small, y=small))
        scale = self._weights.plain(weight, self._wide, self.along(x))
        return mb.mul(x=mb.mul(x=y, y=mb.rsqrt(x=mean, epsilon=self.number(0.0))), y=scale)

    def head_norms(self, qkv: Var, query: Weight, key: Weight, heads: int, kv_heads: int, eps: float) -> Var:
        """Of rows, also where others are columns: the norm is over a head, not over all features."""
        total = heads + 2 * kv_heads
        x = mb.reshape(x=qkv, shape=[1, -1, total, qkv.shape[-1] // total])
        q, k, v = mb.split(x=x, split_sizes=[heads, kv_heads, kv_heads], axis=2)
        normed = mb.concat(values=[self.rms_norm(q, query, eps), self.rms_norm(k, key, eps), v], axis=2)
        return mb.reshape(x=normed, shape=[1, -1, qkv.shape[-1]])

    def along(self, x: Var) -> tuple[int, ...]:
        """The shape of what has one number for each feature of `x`."""
        return (int(x.shape[self.axis]),)

    def activation(self, x: Var, kind: str) -> Var:
        if kind not in _ACTIVATIONS:
            raise EdgeError(
                f"Core ML: there is no rule for the activation {kind!r}, which the model uses",
                hint="another --format, and report this",
            )
        return _ACTIVATIONS[kind](self, x)

    def soft_cap(self, x: Var, cap: float) -> Var:
        return mb.mul(x=mb.tanh(x=mb.mul(x=x, y=self.number(1 / cap))), y=self.number(cap))

    def gated(self, gate_up: Var, kind: str) -> Var:
        gate, up = mb.split(x=gate_up, num_splits=2, axis=self.axis)
        return mb.mul(x=self.activation(gate, kind), y=up)

    def attention(self, q: Var, k: Var, v: Var, heads: int, empty: Var | None = None) -> Var:
        b, s, d = q.shape
        mask: dict[str, Var] = {}
        if empty is not None:
            unseen = mb.mul(x=mb.reshape(x=empty, shape=[b, 1, 1, -1]), y=self.number(UNSEEN))
            mask = {"attn_mask": mb.tile(x=unseen, reps=[1, 1, s, 1])}
        q, k, v = (
            mb.transpose(x=mb.reshape(x=t, shape=[b, -1, heads, d // heads]), perm=[0, 2, 1, 3]) for t in (q, k, v)
        )
        y = mb.scaled_dot_product_attention(query=q, key=k, value=v, **mask)
        return mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 1, 3]), shape=[b, s, d])

    def lookup(self, table: Weight, at: Var, wide: int) -> Var:
        index, columns = self.cast(at, "int32"), self.operand(table)
        if wide:  # in whole numbers: half precision holds none of so many
            row, column = mb.split(x=index, num_splits=2, axis=2)
            index = mb.add(x=mb.mul(x=row, y=np.int32(wide)), y=column)
        found = mb.gather(x=columns, indices=mb.reshape(x=index, shape=[-1]), axis=1)
        return mb.expand_dims(x=mb.transpose(x=found, perm=[1, 0]), axes=[0])

    def deformable_attention(self, values: Var, distances: Var, scores: Var, heads: int) -> Var:
        (b, q, count), grid = scores.shape, distances.shape[3]
        points = count // heads
        near = mb.relu(x=mb.sub(x=self.number(1), y=mb.abs(x=distances)))
        across, down = (
            mb.reshape(x=half, shape=[b * q, heads, points, grid]) for half in mb.split(x=near, num_splits=2, axis=2)
        )
        shares = mb.softmax(x=mb.reshape(x=scores, shape=[b * q, heads, points, 1]), axis=2)
        weights = mb.matmul(x=mb.mul(x=down, y=shares), y=across, transpose_x=True)
        weights = mb.transpose(x=mb.reshape(x=weights, shape=[b, q, heads, grid * grid]), perm=[0, 2, 1, 3])
        values = mb.reshape(x=values, shape=[b, grid * grid, heads, values.shape[2] // heads])
        y = mb.matmul(x=weights, y=mb.transpose(x=values, perm=[0, 2, 1, 3]))
        return mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 1, 3]), shape=[b, q, -1])

    def attend(self, layer: int, qkv: Var, cap: float = 0.0) -> Var:
        assert self._memory is not None
        return self._memory.rows(layer, self.narrow(qkv), cap)

    def narrow(self, x: Var) -> Var:
        """A state holds half precision, and nothing wider."""
        return self.cast(x, "fp16") if self._wide else x

    def add(self, x: Any, y: Any) -> Var:
        return mb.add(x=self.operand(x), y=self.operand(y))

    def mul(self, x: Any, y: Any) -> Var:
        return mb.mul(x=self.operand(x), y=self.operand(y))

    def getitem(self, x: Any, index: Any) -> Any:
        if not isinstance(x, Var):
            return x[index]
        slices = list(index) + [slice(None)] * (x.rank - len(index))
        if not all(isinstance(s, slice) and s.step in (None, 1) for s in slices):
            raise EdgeError(f"Core ML: there is no rule for the index {index}", hint="another --format")
        return mb.slice_by_index(
            x=x,
            begin=[s.start or 0 for s in slices],
            end=[s.stop or 0 for s in slices],
            begin_mask=[s.start is None for s in slices],
            end_mask=[s.stop is None for s in slices],
        )

    def getattr(self, x: Var, name: str) -> Any:
        if name != "shape":
            raise EdgeError(f"Core ML: there is no rule for the attribute {name!r}", hint="another --format")
        return tuple(x.shape)

    def cat(self, tensors: Sequence[Any], dim: int = 0) -> Var:
        return mb.concat(values=[self.operand(t) for t in tensors], axis=dim)

    def quick_gelu(self, x: Var) -> Var:
        return mb.mul(x=x, y=mb.sigmoid(x=mb.mul(x=self.number(1.702), y=x)))

    def hardsigmoid(self, x: Var) -> Var:
        return mb.sigmoid_hard(x=x, alpha=self.number(1 / 6), beta=self.number(0.5))

    def adaptive_avg_pool2d(self, x: Var, output_size: int) -> Var:
        side = x.shape[-1]
        if side % output_size == 0:
            step = side // output_size
            return mb.avg_pool(x=x, kernel_sizes=[step, step], strides=[step, step], pad_type="valid")
        # Windows of several sizes: a sum along each axis, divided by how many it adds. Half precision holds no third;
        # it holds these numbers exactly, and the power of two keeps a sum from growing beyond its largest value.
        inside = windows(side, output_size)
        counts = inside.sum(axis=1)
        calm = 2.0 ** -np.ceil(np.log2(counts.max()))
        pool = self._weights.array(f"pool.{side}.{output_size}", inside * calm, self._wide)
        total = mb.matmul(x=mb.matmul(x=pool, y=x), y=pool, transpose_y=True)
        shares = np.outer(counts, counts)[None, None] * calm**2
        return mb.real_div(x=total, y=self._weights.array(f"pool.{side}.{output_size}.shares", shares, self._wide))

    def flatten(self, x: Var, start: int = 0) -> Var:
        return mb.reshape(x=x, shape=[*x.shape[:start], -1])

    def transpose(self, x: Var, a: int, b: int) -> Var:
        order = list(range(x.rank))
        order[a], order[b] = order[b], order[a]
        return mb.transpose(x=x, perm=order)

    def permute(self, x: Var, *order: int) -> Var:
        return mb.transpose(x=x, perm=list(order))

    def reshape(self, x: Var, *shape: int) -> Var:
        return mb.reshape(x=x, shape=list(shape))

    def expand(self, x: Any, *sizes: int) -> Var:
        var = self.operand(x)
        whole = [1] * (len(sizes) - var.rank) + list(var.shape)
        var = mb.reshape(x=var, shape=whole)
        times = [1 if size in (-1, have) else size for size, have in zip(sizes, whole, strict=True)]
        return var if set(times) == {1} else mb.tile(x=var, reps=times)

    def mean(self, x: Var, dim: Sequence[int], keepdim: bool = False) -> Var:
        return mb.reduce_mean(x=x, axes=list(dim), keep_dims=keepdim)

    def conv2d(self, x: Var, weight: Weight, bias: Weight | None, stride: int, padding: int, groups: int) -> Var:
        given = {} if bias is None else {"bias": self.operand(bias)}
        return mb.conv(
            x=x,
            weight=self.operand(weight),
            strides=[stride] * 2,
            pad_type="custom",
            pad=[padding] * 4,
            dilations=[1, 1],
            groups=groups,
            **given,
        )

    def identity(self, layer: nn.Identity, name: str, x: Var) -> Var:
        return x


# Kinds of `exporters.models.ops.ACTIVATIONS`.
_ACTIVATIONS: dict[str, Callable[[Lowering, Var], Var]] = {
    "gelu": lambda _, x: mb.gelu(x=x, mode="EXACT"),
    "gelu_tanh": lambda _, x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
    "quick_gelu": Lowering.quick_gelu,
    "silu": lambda _, x: mb.silu(x=x),
    "relu": lambda _, x: mb.relu(x=x),
    "hardswish": lambda lowering, x: mb.mul(x=x, y=lowering.hardsigmoid(x)),
    "hardsigmoid": Lowering.hardsigmoid,
    "sigmoid": lambda _, x: mb.sigmoid(x=x),
}

# What is recorded -> the rule that says it: a method above.
_FUNCTIONS: dict[Any, str] = {
    trace.linear: "linear",
    trace.layer_norm: "layer_norm",
    trace.rms_norm: "rms_norm",
    trace.activation: "activation",
    trace.soft_cap: "soft_cap",
    trace.gated: "gated",
    trace.conv2d: "conv2d",
    trace.head_norms: "head_norms",
    trace.attention: "attention",
    trace.lookup: "lookup",
    trace.deformable_attention: "deformable_attention",
    trace.attend: "attend",
    operator.add: "add",
    operator.mul: "mul",
    operator.getitem: "getitem",
    getattr: "getattr",
    torch.cat: "cat",
    F.adaptive_avg_pool2d: "adaptive_avg_pool2d",
}
_METHODS: dict[Any, str] = {
    "flatten": "flatten",
    "transpose": "transpose",
    "permute": "permute",
    "reshape": "reshape",
    "view": "reshape",
    "expand": "expand",
    "mean": "mean",
}
_MODULES: dict[Any, str] = {
    nn.Identity: "identity",
}
