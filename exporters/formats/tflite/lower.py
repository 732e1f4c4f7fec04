"""Run a component on the meta device, and put an operator of TFLite into the graph for each torch function it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edge.errors import EdgeError
from exporters.formats.tflite.components import PlainOps
from exporters.formats.tflite.weights import Product, Weights
from exporters.models import ops
from exporters.models.pooling import windows
from exporters.tflite_model import Graph

_RELU6 = 3  # schema.fbs, ActivationFunctionType
_VALID = 1  # schema.fbs, Padding
_JOINED = 5  # tensors: XNNPACK joins no more at once
_OPERATORS = {  # Python's -> torch's
    "__add__": "add",
    "__sub__": "sub",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__matmul__": "matmul",
    "__getitem__": "getitem",
}


class Lowering(TorchFunctionMode):
    """What is between the inputs and outputs of one subgraph. Every tensor is known by its identity, and kept alive."""

    def __init__(self, graph: Graph, weights: Weights, names: Mapping[int, str]) -> None:
        super().__init__()
        self.graph = graph
        self.weights = weights
        self._names = names  # of the parameters
        self._found: dict[int, int] = {}
        self._turned: dict[int, tuple[Tensor, tuple[int, ...]]] = {}  # permuted, and not yet needed so
        self._kept: list[Tensor] = []

    def input(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor = torch.empty(*shape, device="meta")
        self.graph.inputs[name] = self.graph.tensor(shape, name=name)
        self._keep(tensor, self.graph.inputs[name])
        return tensor

    def output(self, name: str, tensor: Tensor) -> None:
        index = self[tensor]
        self.graph.tensors[index].name = name
        self.graph.outputs[name] = index

    def __getitem__(self, tensor: Tensor) -> int:
        """The number of a tensor in the graph."""
        if id(tensor) not in self._found:
            if id(tensor) in self._turned:
                source, axes = self._turned[id(tensor)]
                made = self._one(
                    "TRANSPOSE", [self[source], self.graph.constant(axes)], tensor, table="TransposeOptions"
                )
                self._found[id(tensor)] = made
            else:
                self._found[id(tensor)] = self.weights.plain(self.graph, self._names[id(tensor)])
        return self._found[id(tensor)]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.__name__
        if name == "__get__" or not isinstance(result, Tensor | tuple | list) or isinstance(result, torch.Size):
            return result  # a shape, a dtype: nothing is computed
        name = _OPERATORS.get(name, name)
        if not hasattr(self, f"_{name}"):
            raise _unknown(name)
        getattr(self, f"_{name}")(result, *args, **kwargs)
        return result

    def _keep(self, tensor: Tensor, index: int) -> None:
        self._kept.append(tensor)
        self._found[id(tensor)] = index

    def _one(self, operator: str, inputs: Sequence[int], like: Tensor, **more: Any) -> int:
        return self.graph.op(operator, inputs, [like.shape], **more)[0]

    def _operand(self, value: Tensor | float) -> int:
        return self[value] if isinstance(value, Tensor) else self.graph.constant(value, "float32")

    # One for each torch function: its result, then its own arguments.

    def _linear(self, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        bias_index = -1 if bias is None else self[bias]
        stored = self.weights.product(self.graph, self._names[id(weight)])
        self._keep(out, self._product(self[x], stored, out.shape, bias_index))

    def _inner(self, out: Tensor, x: Tensor, table: Tensor) -> None:
        stored = self.weights.table(self.graph, self._names[id(table)])
        self._keep(out, self._product(self[x], stored, out.shape))

    def _product(self, x: int, right: Product, shape: Sequence[int], bias: int = -1) -> int:
        options = {"keepNumDims": True, "asymmetricQuantizeInputs": right.dynamic}
        inputs, version = [x, right.tensor, bias], right.version
        return self.graph.op(
            "FULLY_CONNECTED", inputs, [shape], options, table="FullyConnectedOptions", version=version
        )[0]

    def _binary(self, operator: str, table: str, out: Tensor, a: Any, b: Any) -> None:
        self._keep(out, self._one(operator, [self._operand(a), self._operand(b)], out, table=table))

    def _add(self, out: Tensor, a: Any, b: Any) -> None:
        self._binary("ADD", "AddOptions", out, a, b)

    def _sub(self, out: Tensor, a: Any, b: Any) -> None:
        self._binary("SUB", "SubOptions", out, a, b)

    def _mul(self, out: Tensor, a: Any, b: Any) -> None:
        self._binary("MUL", "MulOptions", out, a, b)

    def _unary(self, operator: str, out: Tensor, x: Tensor, **more: Any) -> None:
        self._keep(out, self._one(operator, [self[x]], out, **more))

    def _rsqrt(self, out: Tensor, x: Tensor) -> None:
        self._unary("RSQRT", out, x)

    def _sigmoid(self, out: Tensor, x: Tensor) -> None:
        self._unary("LOGISTIC", out, x)

    def _relu(self, out: Tensor, x: Tensor, inplace: bool = False) -> None:
        self._unary("RELU", out, x)

    def _gelu(self, out: Tensor, x: Tensor, approximate: str = "none") -> None:
        self._unary("GELU", out, x, options={"approximate": approximate == "tanh"}, table="GeluOptions")

    def _hardswish(self, out: Tensor, x: Tensor, inplace: bool = False) -> None:
        self._unary("HARD_SWISH", out, x, table="HardSwishOptions")

    def _hardsigmoid(self, out: Tensor, x: Tensor, inplace: bool = False) -> None:
        three, sixth = self.graph.constant(3, "float32"), self.graph.constant(1 / 6, "float32")
        options = {"fusedActivationFunction": _RELU6}
        clamped = self._one("ADD", [self[x], three], out, options=options, table="AddOptions")
        self._keep(out, self._one("MUL", [clamped, sixth], out, table="MulOptions"))

    def _softmax(self, out: Tensor, x: Tensor, dim: int, **_: Any) -> None:
        if dim not in (-1, x.dim() - 1):
            raise _unknown(f"softmax over axis {dim} of {x.dim()}")
        self._unary("SOFTMAX", out, x, options={"beta": 1.0}, table="SoftmaxOptions")

    def _mean(self, out: Tensor, x: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> None:
        axes = [axis % x.dim() for axis in (dim if isinstance(dim, tuple) else (dim,))]
        options = {"keepDims": keepdim}
        inputs = [self[x], self.graph.constant(axes)]
        self._keep(out, self._one("MEAN", inputs, out, options=options, table="ReducerOptions"))

    def _matmul(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        last = (*range(b.dim() - 2), b.dim() - 1, b.dim() - 2)
        source, axes = self._turned.get(id(b), (b, ()))
        right = source if axes == last else b  # the operator turns the right side itself
        options = {"adjY": axes == last}
        made = self._one("BATCH_MATMUL", [self[a], self[right]], out, options=options, table="BatchMatMulOptions")
        self._keep(out, made)

    def _reshape_to(self, out: Tensor, x: Tensor) -> None:
        shape = self.graph.free(out.shape)
        if shape.count(-1) > 1:  # the operator finds one size from what the others leave
            raise _unknown(f"reshape to {shape}")
        options = {"newShape": shape}
        inputs = [self[x], self.graph.constant(shape)]
        self._keep(out, self._one("RESHAPE", inputs, out, options=options, table="ReshapeOptions"))

    def _view(self, out: Tensor, x: Tensor, *_: Any) -> None:
        self._reshape_to(out, x)

    def _reshape(self, out: Tensor, x: Tensor, *_: Any) -> None:
        self._reshape_to(out, x)

    def _flatten(self, out: Tensor, x: Tensor, *_: Any) -> None:
        self._reshape_to(out, x)

    def _expand(self, out: Tensor, x: Tensor, *_: Any) -> None:
        if out.numel() != x.numel():
            raise _unknown(f"expand of {list(x.shape)} to {list(out.shape)}")
        self._reshape_to(out, x)

    def _permuted(self, out: Tensor, x: Tensor, axes: Sequence[int]) -> None:
        self._kept.append(out)
        self._turned[id(out)] = x, tuple(axis % x.dim() for axis in axes)

    def _transpose(self, out: Tensor, x: Tensor, a: int, b: int) -> None:
        axes = list(range(x.dim()))
        axes[a], axes[b] = axes[b], axes[a]
        self._permuted(out, x, axes)

    def _permute(self, out: Tensor, x: Tensor, *axes: int) -> None:
        self._permuted(out, x, axes)

    def _arange(self, out: Tensor, end: int, **_: Any) -> None:
        self._keep(out, self.graph.constant(range(end), "float32"))

    def _cat(self, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
        if not 2 <= len(tensors) <= _JOINED:
            raise _unknown(f"torch.cat of {len(tensors)} tensors")
        options = {"axis": dim % out.dim()}
        inputs = [self[t] for t in tensors]
        self._keep(out, self._one("CONCATENATION", inputs, out, options=options, table="ConcatenationOptions"))

    def _slice(self, out: Tensor, x: Tensor, axis: int, begin: int, end: int) -> None:
        """Of one axis, from `begin` (negative: counted from the end) to `end` (its size: all that is left)."""
        others = (1 << x.dim()) - 1 - (1 << axis)  # masks: what begins at the beginning, what ends at the end
        options = {"beginMask": others, "endMask": others | (end == x.shape[axis]) << axis}
        places = [[0] * x.dim(), [0] * x.dim(), [1] * x.dim()]
        places[0][axis], places[1][axis] = begin, end
        inputs = [self[x], *(self.graph.constant(numbers) for numbers in places)]
        self._keep(out, self._one("STRIDED_SLICE", inputs, out, options=options, table="StridedSliceOptions"))

    def _getitem(self, out: Tensor, x: Tensor, index: Any) -> None:
        index = index if isinstance(index, tuple) else (index,)
        if index[0] is Ellipsis:
            index = (*(slice(None),) * (x.dim() - len(index) + 1), *index[1:])
        cut = [axis for axis, part in enumerate(index) if part != slice(None)]
        if not all(isinstance(part, slice) and part.step is None for part in index):
            raise _unknown(f"the index {index}")
        if tuple(out.shape) == tuple(x.shape):
            self._keep(out, self[x])
            return
        if len(cut) > 1:
            raise _unknown(f"the index {index}, which cuts several axes")
        (axis,) = cut
        begin, end, _ = index[axis].indices(x.shape[axis])
        if x.shape[axis] in self.graph.varying and index[axis].start and index[axis].start < 0:
            begin = index[axis].start
        self._slice(out, x, axis, begin, end)

    def _chunk(self, out: Sequence[Tensor], x: Tensor, chunks: int, dim: int = 0) -> None:
        at = 0
        for piece in out:
            self._slice(piece, x, dim % x.dim(), at, at + piece.shape[dim])
            at += piece.shape[dim]

    def _adaptive_avg_pool2d(self, out: Tensor, x: Tensor, size: Any) -> None:
        (high, wide), (h, w) = x.shape[2:], out.shape[2:]
        if high % h or wide % w:
            self._keep(out, self._means(self._means(self[x], x.shape, w), (*x.shape[:2], w, high), h))
            return
        options = {
            "padding": _VALID,
            "strideH": high // h,
            "strideW": wide // w,
            "filterHeight": high // h,
            "filterWidth": wide // w,
        }
        self._channels_last("AVERAGE_POOL_2D", out, x, [], options=options, table="Pool2DOptions")

    def _means(self, index: int, shape: Sequence[int], count: int) -> int:
        """`[B, C, H, W]` -> `[B, C, count, H]`: W pooled to `count`, and turned. The operator for pooling has windows
        of one size, so each mean is a column of a product."""
        b, c, high, wide = shape
        shares = windows(wide, count).astype(np.float32)
        shares /= shares.sum(axis=1, keepdims=True)
        right = self.weights.constant(self.graph, f"means:{wide}:{count}", shares)
        return self._turn(self._product(index, right, (b, c, high, count)), (0, 1, 3, 2), (b, c, count, high))

    def _conv2d(
        self,
        out: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        if dilation != 1:
            raise _unknown(f"conv2d of dilation {dilation}")
        depthwise = groups > 1 and groups == x.shape[1]
        bias_index = self.weights.zeros(self.graph, out.shape[1]) if bias is None else self[bias]
        filters = self.weights.filters(self.graph, self._names[id(weight)], depthwise)
        options = {"padding": _VALID, "strideH": stride, "strideW": stride}
        options |= {"depthMultiplier": out.shape[1] // groups} if depthwise else {}
        options |= {"dilationHFactor": 1, "dilationWFactor": 1}
        operator, table = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
        self._channels_last(operator, out, x, [filters, bias_index], padding, options=options, table=table)

    def _channels_last(
        self, operator: str, out: Tensor, x: Tensor, more: Sequence[int], padding: int = 0, **how: Any
    ) -> None:
        """TFLite's pictures are `[B, H, W, C]`."""
        b, c, h, w = x.shape
        last = self._turn(self[x], (0, 2, 3, 1), (b, h, w, c))
        if padding:
            margin = self.graph.constant([[0, 0], [padding, padding], [padding, padding], [0, 0]])
            shape = (b, h + 2 * padding, w + 2 * padding, c)
            last = self.graph.op("PAD", [last, margin], [shape], table="PadOptions")[0]
        b, c, h, w = out.shape
        made = self.graph.op(operator, [last, *more], [(b, h, w, c)], **how)[0]
        self._keep(out, self._turn(made, (0, 3, 1, 2), out.shape))

    def _turn(self, index: int, axes: Sequence[int], shape: Sequence[int]) -> int:
        return self.graph.op("TRANSPOSE", [index, self.graph.constant(axes)], [shape], table="TransposeOptions")[0]


def _unknown(what: str) -> EdgeError:
    return EdgeError(
        f"TFLite: there is no rule for {what}, which the model uses", hint="another --format, and report this"
    )


def run(
    graph: Graph,
    weights: Weights,
    names: Mapping[int, str],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    module: Callable[..., Any],
) -> dict[str, tuple[int, ...]]:
    """Lower what `module` makes of the inputs (name -> shape), in their order; gives the outputs' shapes."""
    lowering = Lowering(graph, weights, names)
    given = [lowering.input(name, shape) for name, shape in inputs.items()]
    with ops.using(PlainOps()), torch.inference_mode(), lowering:
        made = module(*given)
    results = dict(zip(outputs, made if isinstance(made, tuple) else (made,), strict=True))
    for name, tensor in results.items():
        lowering.output(name, tensor)
    graph.model.add(graph)
    return {name: tuple(tensor.shape) for name, tensor in results.items()}
