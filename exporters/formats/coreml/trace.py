"""Record what a component computes as a torch.fx graph, its fused operations as one node each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, fx, nn

from exporters.models import ops
from exporters.models.attention import Attend
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder

REFERENCE = ops.Ops()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return REFERENCE.linear(x, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return REFERENCE.layer_norm(x, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return REFERENCE.rms_norm(x, weight, eps)


def activation(x: Tensor, kind: str) -> Tensor:
    return REFERENCE.activation(x, kind)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    return REFERENCE.soft_cap(x, cap)


def gated(gate_up: Tensor, kind: str) -> Tensor:
    return REFERENCE.gated(gate_up, kind)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int) -> Tensor:
    return REFERENCE.conv2d(x, weight, bias, stride, padding, groups)


def head_norms(qkv: Tensor, query: Tensor, key: Tensor, heads: int, kv_heads: int, eps: float) -> Tensor:
    return REFERENCE.head_norms(qkv, query, key, heads, kv_heads, eps)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, empty: Tensor | None = None) -> Tensor:
    return REFERENCE.attention(q, k, v, heads, empty)


def lookup(table: Tensor, at: Tensor, wide: int) -> Tensor:
    return REFERENCE.lookup(table, at, wide)


def deformable_attention(values: Tensor, distances: Tensor, scores: Tensor, heads: int) -> Tensor:
    return REFERENCE.deformable_attention(values, distances, scores, heads)


def attend(layer: int, qkv: Tensor, cap: float = 0.0) -> Tensor:
    """Stands for the decoder's memory; what runs the graph puts its own in this place."""
    raise NotImplementedError


class _Recorded(ops.Ops):
    """Each fused operation is one node; the others are recorded as the torch functions that they are made of."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _node(linear, x, weight, bias)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return _node(layer_norm, x, weight, bias, eps)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _node(rms_norm, x, weight, eps)

    def activation(self, x: Tensor, kind: str) -> Tensor:
        return _node(activation, x, kind)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return _node(soft_cap, x, cap)

    def gated(self, gate_up: Tensor, kind: str) -> Tensor:
        return _node(gated, gate_up, kind)

    def head_norms(self, qkv: Tensor, query: Tensor, key: Tensor, heads: int, kv_heads: int, eps: float) -> Tensor:
        return _node(head_norms, qkv, query, key, heads, kv_heads, eps)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, empty: Tensor | None = None) -> Tensor:
        return _node(attention, q, k, v, heads, *(() if empty is None else (empty,)))

    def lookup(self, table: Tensor, at: Tensor, wide: int = 0) -> Tensor:
        return _node(lookup, table, at, wide)

    def deformable_attention(self, values: Tensor, distances: Tensor, scores: Tensor, heads: int) -> Tensor:
        return _node(deformable_attention, values, distances, scores, heads)

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int) -> Tensor:
        return _node(conv2d, x, weight, bias, stride, padding, groups)


def encoder(skeleton: Encoder) -> fx.Graph:
    """`pixel_values` -> `image_embeds`."""
    return _trace(skeleton)


def decoder(skeleton: LanguageModel) -> fx.Graph:
    """`inputs_embeds` -> `logits`; a node of `attend` in each layer. Weights lie under `decoder.`."""
    return _trace(WithMemory(skeleton))


class WithMemory(nn.Module):
    """A decoder as a module of one input."""

    def __init__(self, decoder: LanguageModel) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        attending = cast("Attend", lambda layer, qkv, cap=0.0: _node(attend, layer, qkv, cap))
        return cast("Tensor", self.decoder(inputs_embeds, attending))


class Run(fx.Interpreter):
    """Computes a recorded graph with a module's numbers, and shows each node's value to `seen`."""

    def __init__(
        self, module: nn.Module, graph: fx.Graph, seen: Callable[[fx.Node, Any], None], attending: Attend | None
    ) -> None:
        super().__init__(module, graph=graph)
        self._seen = seen
        self._attending = attending

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self._seen(n, value)
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is attend:
            assert self._attending is not None
            return self._attending(*args)
        return super().call_function(target, args, kwargs)


def _trace(module: nn.Module) -> fx.Graph:
    with ops.using(_Recorded()):
        return fx.Tracer().trace(module)


def _node(target: Callable[..., Tensor], *args: Any) -> Tensor:
    proxy = next(argument for argument in args if isinstance(argument, fx.Proxy))
    return cast("Tensor", proxy.tracer.create_proxy("call_function", target, args, {}))
