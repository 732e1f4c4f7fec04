"""Opens `coreml` parts op by op on torch, each result rounded to half precision as the program declares it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from edge.decoders.embedding_table import EmbeddingTable
from edge.decoders.function_graph import FunctionGraph
from edge.decoders.stateful import DECODE, PREFILL, StatefulDecoder
from edge.errors import BundleError, EngineError
from edge.planning.placement import Placed
from edge.spec import DecoderSpec
from edge.types import Array, Decoder, EngineFacts, Graph, OpenOptions, PartFiles
from exporters.mil import package
from exporters.mil import placement as predicted
from exporters.mil.coremltools import coremltools
from exporters.mil.program import Precision, Program

ENGINE: EngineFacts = {
    "formats": ("coreml",),
    "package": "coremltools",
    # The stored numbers stay mapped beside the float16 ones that are made of them.
    "resident": {"fp16": 1.0, "w8": 3.0, "w4": 4.5, "pal4": 4.9},
    "cache_item": 2,  # its states are fp16
}


def version() -> str:
    return str(coremltools.__version__)


def open(part: PartFiles, options: OpenOptions) -> Graph | Decoder:
    """See `edge.types.Runtime`."""
    return evaluate(part, options, "fp16")


def evaluate(part: PartFiles, options: OpenOptions, precision: Precision) -> Graph | Decoder:
    """As `open`; in fp32 what is left of an error is the program's own. Raises BundleError on a package that is not
    sound, EngineError on one that is not the part that is described."""
    torch.set_num_threads(options.threads)
    program = Program(package.read(root(part)), precision)
    if part.decoder is None:
        return _graph(program, part)
    spec = part.decoder
    table = EmbeddingTable.open(part.files, spec.vocab, spec.hidden)
    return StatefulDecoder(EvaluatedDecoder(program, spec), table, options.context)


def placement(part: PartFiles) -> Iterator[Placed]:
    """Where each operation of its functions would run on an Apple device: a prediction."""
    program = Program(package.read(root(part)))
    for name in program.names:
        yield from predicted.placed(name, program.function(name))


def root(part: PartFiles) -> Path:
    """A part's first file is the package's list."""
    if part.files[0].name != "Manifest.json":
        raise BundleError(f"{part.files[0].name} is no list of a Core ML package", hint="export the bundle again")
    return part.files[0].parent


def _graph(program: Program, part: PartFiles) -> FunctionGraph:
    """The default function of a package."""
    name: str = program.package.description.defaultFunctionName
    function = program.function(name)
    given = set(function.inputs), set(function.outputs)
    if given != ({t.name for t in part.inputs}, {t.name for t in part.outputs}) or function.states:
        raise EngineError(
            f"{program.package.path.name} is not the part that the manifest describes: {name} takes "
            f"{', '.join(function.inputs)} and gives {', '.join(function.outputs)}",
            hint="export the bundle again",
        )
    return FunctionGraph(part, lambda feeds: _arrays(program.run(name, _tensors(feeds))))


class EvaluatedDecoder:
    """The functions of a decoder's package, and the states that they share."""

    def __init__(self, program: Program, spec: DecoderSpec) -> None:
        self._program = program
        expected = (spec.layers, 1, spec.kv_heads, spec.context, spec.head_dim)
        for name in (PREFILL, DECODE):
            declared = program.function(name).states
            if [kind.shape for kind in declared.values()] != [expected, expected]:
                raise EngineError(
                    f"the states of {name} hold {[list(kind.shape) for kind in declared.values()]}, expected keys and "
                    f"values of {list(expected)}",
                    hint="export the bundle again",
                )
        self._states = program.states(PREFILL)

    def run(self, function: str, feeds: Mapping[str, Array]) -> Array:
        return _arrays(self._program.run(function, _tensors(feeds), self._states))["logits"]


def _tensors(feeds: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
