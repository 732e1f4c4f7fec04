"""Trace a component on the meta device, its operations as symbolic calls to ONNX Runtime's fused operators."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.onnx.ops import symbolic, symbolic_multi_out
from torch.utils._pytree import tree_map

from edge.errors import EdgeError, first_line
from exporters.models import ops
from exporters.models.decoders import LanguageModel

OPSET = 21
MICROSOFT = "com.microsoft"
LINEAR = ("edge", "Linear")  # stands for a product until `lower` writes it in the scheme that was asked for
# What QuickGelu computes, x * sigmoid(alpha * x), with a vectorised kernel: SiLU is it with alpha 1.
_ALPHAS = {"quick_gelu": 1.702, "silu": 1.0}


class FusedOps(ops.Ops):
    """com.microsoft's operators (onnxruntime/docs/ContribOperators.md), each with one kernel on every processor."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        inputs = (x, weight) if bias is None else (x, weight, bias)
        return _call("::".join(LINEAR), inputs, {}, [*x.shape[:-1], weight.shape[0]])

    # The sum before it stays an Add: SkipLayerNormalization's kernel takes four times as long as the two (ORT 1.31).
    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return _call("LayerNormalization", (x, weight, bias), {"axis": -1, "epsilon": eps}, x.shape)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        attrs = {"axis": -1, "epsilon": eps, "stash_type": 1}
        return _call("SimplifiedLayerNormalization", (x, weight), attrs, x.shape)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return _norm_of_sum("com.microsoft::SkipSimplifiedLayerNormalization", (x, delta, weight), eps)

    def activation(self, x: Tensor, kind: str) -> Tensor:
        if kind in _ALPHAS:
            return _call("com.microsoft::QuickGelu", (x,), {"alpha": _ALPHAS[kind]}, x.shape)
        return super().activation(x, kind)

    def gated(self, gate_up: Tensor, kind: str) -> Tensor:
        half = [*gate_up.shape[:-1], gate_up.shape[-1] // 2]
        split = symbolic_multi_out(
            "Split", (gate_up,), {"axis": -1, "num_outputs": 2}, dtypes=[gate_up.dtype] * 2, shapes=[half] * 2
        )
        return self.activation(split[0], kind) * split[1]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, empty: Tensor | None = None) -> Tensor:
        inputs: tuple[Tensor | None, ...] = (q, k, v)
        attrs: dict[str, Any] = {"num_heads": heads}
        if empty is not None:  # the kernel wants to know which keys are there
            there = (empty * -1 + 1).to(torch.int32)
            inputs, attrs = (q, k, v, None, there), attrs | {"mask_filter_value": ops.UNSEEN}
        return _call("com.microsoft::MultiHeadAttention", inputs, attrs, q.shape)

    def lookup(self, table: Tensor, at: Tensor, wide: int = 0) -> Tensor:
        index = at.to(torch.int64)
        flat = index[:, :, :1] * wide + index[:, :, 1:] if wide else index
        found = _call("Gather", (table, flat.reshape(-1)), {"axis": 1}, [table.shape[0], at.shape[1]])
        return found.transpose(0, 1).reshape(1, at.shape[1], table.shape[0])


def _call(op: str, inputs: Sequence[Tensor | None], attrs: dict[str, Any], shape: Sequence[Any]) -> Tensor:
    return symbolic(op, inputs, attrs, dtype=torch.float32, shape=shape)


def _norm_of_sum(op: str, inputs: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum). Between them stand its mean and deviation, for which a shape must be given here;
    `_leave_out` takes both away."""
    shape = inputs[0].shape
    out = symbolic_multi_out(op, inputs, {"epsilon": eps}, dtypes=[torch.float32] * 4, shapes=[shape] * 4)
    return out[0], out[3]


class _WithCache(nn.Module):
    """A decoder whose cache comes and goes as tensors; GroupQueryAttention updates it in place when they are shared."""

    def __init__(self, decoder: LanguageModel, length: int) -> None:
        super().__init__()
        self.decoder = decoder
        half = (length, decoder.config.rope.width // 2)
        self.cos_cache: Tensor
        self.sin_cache: Tensor
        self.register_buffer("cos_cache", torch.empty(half, device="meta"))
        self.register_buffer("sin_cache", torch.empty(half, device="meta"))

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        config = self.decoder.config
        last = (attention_mask.sum(dim=1) - 1).to(torch.int32)  # [1]
        total = symbolic("Shape", (attention_mask,), {"start": 1, "end": 2}, dtype=torch.int64, shape=[1])
        total = total.to(torch.int32)
        attrs = {
            "num_heads": config.heads,
            "kv_num_heads": config.kv_heads,
            "do_rotary": 1,
            "rotary_interleaved": 0,
            "scale": config.head_dim**-0.5,
        }
        present: list[Tensor] = []

        def attend(layer: int, qkv: Tensor, cap: float = 0.0) -> Tensor:
            key, value = past[2 * layer : 2 * layer + 2]
            y, *updated = symbolic_multi_out(
                "com.microsoft::GroupQueryAttention",
                (qkv, None, None, key, value, last, total, self.cos_cache, self.sin_cache),
                attrs | ({"softcap": cap} if cap else {}),
                dtypes=[torch.float32] * 3,
                shapes=[[*qkv.shape[:2], config.heads * config.head_dim], key.shape, value.shape],
            )
            present.extend(updated)
            return y

        return (self.decoder(inputs_embeds, attend), *present)


def encoder(skeleton: nn.Module, view: Sequence[int]) -> ir.Model:
    """`pixel_values` of the shape `view` -> `image_embeds`; the batch is one picture."""
    pixels = torch.empty(*view, device="meta")
    return _export(skeleton, (pixels,), ["pixel_values"], ["image_embeds"], dynamic=None)


def decoder(skeleton: LanguageModel, context: int) -> ir.Model:
    """`inputs_embeds`, `attention_mask` and the cache -> `logits` of the last position and the cache."""
    config = skeleton.config
    slots = [f"{layer}.{kind}" for layer in range(config.layers) for kind in ("key", "value")]
    example = (
        torch.empty(1, 5, config.hidden, device="meta"),
        torch.empty(1, 9, dtype=torch.int64, device="meta"),
        [torch.empty(1, config.kv_heads, 32, config.head_dim, device="meta") for _ in slots],
    )
    sequence = torch.export.Dim("sequence_length", min=1, max=context)
    total = torch.export.Dim("total_sequence_length", min=1, max=context)
    cache = torch.export.Dim("cache_length", min=2, max=context)
    return _export(
        _WithCache(skeleton, context),
        example,
        ["inputs_embeds", "attention_mask", *(f"past_key_values.{slot}" for slot in slots)],
        ["logits", *(f"present.{slot}" for slot in slots)],
        dynamic=({1: sequence}, {1: total}, [{2: cache}] * len(slots)),
    )


def _export(
    module: nn.Module, example: tuple[Any, ...], inputs: list[str], outputs: list[str], dynamic: Any
) -> ir.Model:
    try:
        with _quiet(), ops.using(FusedOps()):
            program = torch.onnx.export(
                *_on_cpu(module, example),
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=dynamic,
                optimize=False,  # it would fold constants, and there are no numbers yet
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _refused(error) from error
    assert program is not None
    _leave_out(program.model)
    _cast_plainly(program.model)
    return program.model


def _on_cpu(module: nn.Module, example: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """As many fake tensors: symbolic operators give such of the CPU, and torch adds none of them to one of meta."""
    module = copy.deepcopy(module)
    given = dict(module.state_dict()), example
    with FakeTensorMode():
        state, fake = tree_map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype), given)
    module.load_state_dict(state, assign=True)
    return module, fake


def _refused(error: BaseException) -> EdgeError:
    """The reason lies below torch's advice to its developers."""
    while error.__cause__ is not None and not isinstance(error, EdgeError):
        error = error.__cause__
    if isinstance(error, EdgeError):
        return error
    return EdgeError(
        f"ONNX: there is no rule for what the model uses: {first_line(error)}",
        hint="another --format, and report this",
    )


def _leave_out(model: ir.Model) -> None:
    """An optional output that nobody reads has an empty name, as ONNX has it: no engine makes room for it."""
    for node in model.graph:
        for value in node.outputs[1:] if node.domain == MICROSOFT else ():
            if not value.uses() and not value.is_graph_output():
                value.name = ""


def _cast_plainly(model: ir.Model) -> None:
    """The positions of a pool's windows are constants, and ONNX Runtime warns that it cannot fold their CastLike."""
    for node in model.graph:
        if node.op_type == "CastLike" and (like := node.inputs[1]) is not None and like.dtype == ir.DataType.INT64:
            node.op_type = "Cast"
            node.resize_inputs(1)
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.INT64))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of what does not concern this model (torchvision is missing, dimensions were unified)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
