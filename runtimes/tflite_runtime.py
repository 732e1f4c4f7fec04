"""Engine for `tflite` parts: tflite-runtime 2.14, the library before LiteRT, where that is all there is.

It takes the first scale of a product's weights for all of its rows, and says nothing: such files are refused here.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import numpy as np
from tflite_runtime.interpreter import Interpreter

from edge.decoders import signatures
from edge.decoders.signatures import PAST, Arrays, Call, SignatureDecoder, SignatureGraph
from edge.errors import EngineError
from edge.formats.tflite import TFLite
from edge.types import Array, EngineFacts, OpenOptions, PartFiles

ENGINE: EngineFacts = {
    "formats": ("tflite",),
    "package": "tflite-runtime",
    "cache_copies": 4,  # measured with 2048 positions
}
PACKAGE = ENGINE["package"]

VERSION = "2.14"  # whose interpreter's inner calls are used here


def version() -> str:
    return metadata.version(PACKAGE)


def open(part: PartFiles, options: OpenOptions) -> SignatureGraph | SignatureDecoder:
    """The part's first file. Raises BundleError on a file that is not sound or not what the manifest describes, and
    EngineError on one that the library refuses or would compute wrong."""
    return signatures.opened(part, options, lambda file: InterpreterProgram(file, options))


class InterpreterProgram:
    """Each signature has memory of its own, which is laid out anew for another number of positions. The cache is that
    of the signature which reads it, and is carried over then.

    The interpreter's inner calls, which reach each signature's tensors where they lie, all stand here.
    """

    def __init__(self, file: TFLite, options: OpenOptions) -> None:
        if not version().startswith(VERSION + "."):
            raise EngineError(
                f"tflite-runtime {version()} is not {VERSION}, whose inner calls are known here",
                hint=f"pip install '{PACKAGE}=={VERSION}.*'",
            )
        if not file.shared_scale:
            raise EngineError(
                f"tflite-runtime computes {file.path.name} wrong: its weights have several scales, and it takes one "
                "for all",
                hint="export again with --recipe tflite-legacy, or pip install ai-edge-litert",
            )
        path = os.fspath(file.path)
        try:
            self._inner: Any = Interpreter(model_path=path, num_threads=options.threads)._interpreter
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"tflite-runtime cannot open {file.path.name}: {error}") from error
        self._signatures = file.signatures
        self._laid: dict[str, Call] = {}  # how each signature's memory is laid out
        self._arrays: dict[str, dict[str, Array]] = {}  # all inputs and outputs, where the library has them

    def cache(self, call: Call) -> Arrays:
        arrays = self._lay(call)
        for name, array in arrays.items():
            if name.startswith(PAST):
                array[:] = 0
        return arrays

    def bind(self, call: Call) -> Arrays:
        return self._lay(call)

    def run(self, call: Call) -> None:
        try:
            self._inner.Invoke(self._signatures[call.name].subgraph)
        except RuntimeError as error:
            raise EngineError(f"tflite-runtime failed while running {call.name}: {error}") from error

    def _lay(self, call: Call) -> dict[str, Array]:
        """All inputs and outputs of a call, the cache included: the same mapping for a signature each time."""
        arrays = self._arrays.setdefault(call.name, {})
        if self._laid.get(call.name) == call:
            return arrays
        kept = {name: array.copy() for name, array in arrays.items() if name.startswith(PAST)}
        arrays.clear()  # the library frees what they show
        signature = self._signatures[call.name]
        shapes = {spec.name: spec.shape for spec in call.inputs}
        try:
            for spec, index in zip(signature.inputs, signature.input_tensors, strict=True):
                if signature.varying.get(spec.name):
                    size = np.array(shapes[spec.name], np.int32)
                    self._inner.ResizeInputTensor(index, size, True, signature.subgraph)
            self._inner.AllocateTensors(signature.subgraph)
            for named, tensors in (
                (signature.inputs, signature.input_tensors),
                (signature.outputs, signature.output_tensors),
            ):
                for spec, index in zip(named, tensors, strict=True):
                    arrays[spec.name] = self._inner.tensor(self._inner, index, signature.subgraph)
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"tflite-runtime cannot prepare {call.name}: {error}") from error
        for name, array in kept.items():
            arrays[name][:] = array
        self._laid[call.name] = call
        return arrays
