"""The functions of a package: each a MIL function, and its description as Xcode and an app see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from coremltools import proto
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, Var, get_new_symbol, types
from torch import fx, nn

from edge.decoders.stateful import MASKED
from edge.spec import ImageSpec
from exporters.formats import Progress
from exporters.formats.coreml.channels_first import ChannelsFirst
from exporters.formats.coreml.kv_states import Memory
from exporters.formats.coreml.lower import Lowering
from exporters.formats.coreml.weights import Weights
from exporters.mil.coremltools import TARGET
from exporters.models.decoders import DecoderConfig

_DEFAULT_ROWS = 64  # of a flexible axis, where nothing says how many
_FLOAT32 = proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
_FLOAT16 = proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT16
Description: TypeAlias = Any  # proto.Model_pb2.FunctionDescription


@dataclass(frozen=True)
class Recorded:
    """What the functions of one package share."""

    graph: fx.Graph
    module: nn.Module
    weights: Weights
    wide: Mapping[str, float]  # what overflows half precision, with its largest value
    channels_first: bool

    def lower(self, x: Var, progress: Progress, memory: Memory | None = None) -> Var:
        lowering = ChannelsFirst if self.channels_first else Lowering
        return lowering(self.graph, self.module, self.weights, self.wide.keys(), memory).run(x, progress)


def encode(
    recorded: Recorded, view: Sequence[int], rows: tuple[int, int], progress: Progress
) -> tuple[Function, Description]:
    """`pixel_values` f32 of the shape `view` -> `image_embeds` f32 `[1, N, D]`; rows are (N, D)."""
    with Function({"pixel_values": mb.placeholder([*view], dtype=types.fp32)}, TARGET) as function:
        x = mb.cast(x=function.inputs["pixel_values"], dtype="fp16")
        function.set_outputs([_named(recorded.lower(x, progress), "image_embeds")])
    description = proto.Model_pb2.FunctionDescription(name="encode")
    _array(description.input, "pixel_values", view, "RGB, / 255, minus the mean, / the deviation")
    _array(description.output, "image_embeds", [1, *rows], "Rows that the decoder reads where the picture stands")
    return function, description


def encode_image(
    recorded: Recorded, spec: ImageSpec, rows: tuple[int, int], progress: Progress
) -> tuple[Function, Description]:
    """The same from a picture: an RGB image of size x size, whose numbers are made of its bytes in here."""
    size = spec.size
    with Function({"image": mb.placeholder([1, 3, size, size], dtype=types.fp32)}, TARGET) as function:
        deviation = np.array(spec.std, np.float32).reshape(1, 3, 1, 1)
        mean = np.array(spec.mean, np.float32).reshape(1, 3, 1, 1)
        x = mb.mul(x=function.inputs["image"], y=1 / (255 * deviation))
        x = mb.cast(x=mb.sub(x=x, y=mean / deviation), dtype="fp16")
        function.set_outputs([_named(recorded.lower(x, progress), "image_embeds")])
    description = proto.Model_pb2.FunctionDescription(name="encode_image")
    feature = description.input.add(name="image", shortDescription="The picture, on a square as the manifest says")
    feature.type.imageType.width = feature.type.imageType.height = size
    feature.type.imageType.colorSpace = proto.FeatureTypes_pb2.ImageFeatureType.RGB
    _array(description.output, "image_embeds", [1, *rows], "Rows that the decoder reads where the picture stands")
    return function, description


def decode(
    recorded: Recorded, config: DecoderConfig, name: str, rows: int | None, progress: Progress
) -> tuple[Function, Description]:
    """`inputs_embeds` f32 `[1, S, hidden]` and `causal_mask` f32 `[1, 1, S, T]` -> `logits` f32 `[1, 1, vocab]` of the
    last position; `key_cache` and `value_cache` are states. `rows` is S where it is fixed. T counts all positions that
    are remembered, the S new ones among them."""
    new, total = rows or get_new_symbol(), get_new_symbol()
    state = [config.layers, 1, config.kv_heads, config.context, config.head_dim]
    inputs = {
        "inputs_embeds": mb.placeholder([1, new, config.hidden], dtype=types.fp32),
        "causal_mask": mb.placeholder([1, 1, new, total], dtype=types.fp32),
        "key_cache": mb.state_tensor_placeholder(state, dtype=types.fp16),
        "value_cache": mb.state_tensor_placeholder(state, dtype=types.fp16),
    }
    with Function(inputs, TARGET) as function:
        x, mask = (mb.cast(x=function.inputs[key], dtype="fp16") for key in ("inputs_embeds", "causal_mask"))
        states = function.inputs["key_cache"], function.inputs["value_cache"]
        memory = Memory(config, recorded.weights, states, x, mask)
        function.set_outputs([_named(recorded.lower(x, progress, memory), "logits")])
    description = proto.Model_pb2.FunctionDescription(name=name)
    span = (rows, rows) if rows else (1, config.context)
    shapes = {
        "inputs_embeds": ([(1, 1), span, (config.hidden,) * 2], "Rows of the embedding table, or of pictures"),
        "causal_mask": (
            [(1, 1), (1, 1), span, (1, config.context)],
            f"0 where a new position may look, {MASKED} elsewhere; its last axis counts what is remembered with it",
        ),
    }
    for key, (ranges, text) in shapes.items():
        default = [low if low == high else min(_DEFAULT_ROWS, high) for low, high in ranges]
        _array(description.input, key, default, text, ranges)
    _array(description.output, "logits", [1, 1, config.vocab], "Of the last position")
    for key in ("key_cache", "value_cache"):
        feature = description.state.add(name=key, shortDescription="Of every layer; begin with a new one")
        feature.type.stateType.arrayType.shape.extend(state)
        feature.type.stateType.arrayType.dataType = _FLOAT16
    return function, description


def program(functions: Sequence[tuple[Function, Description]]) -> tuple[Program, proto.Model_pb2.ModelDescription]:
    """The first is the one that an app gets if it names none."""
    made = Program()
    made.export_as_multifunction = made.skip_all_passes = True
    for function, description in functions:
        made.add_function(description.name, function)
    made.default_function_name = functions[0][1].name
    described = proto.Model_pb2.ModelDescription(
        functions=[description for _, description in functions], defaultFunctionName=made.default_function_name
    )
    return made, described


def _named(x: Var, name: str) -> Var:
    if x.dtype == types.fp32:
        return mb.identity(x=x, name=name)
    return mb.cast(x=x, dtype="fp32", name=name)


def _array(
    features: Any, name: str, shape: Sequence[int], text: str, ranges: Sequence[tuple[int, int]] | None = None
) -> None:
    feature = features.add(name=name, shortDescription=text)
    array = feature.type.multiArrayType
    array.shape.extend(shape)
    array.dataType = _FLOAT32
    for low, high in ranges or ():
        array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
