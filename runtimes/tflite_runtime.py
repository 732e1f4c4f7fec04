"""Opens `tflite` parts with tflite-runtime 2.14, the library before LiteRT, where that is all there is.

It takes the first scale of a product's weights for all of its rows, and says nothing: such files are refused here.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import numpy as np
from tflite_runtime.interpreter import Interpreter

from edge import machine, steps
from edge.errors import EngineError
from edge.steps import PAST, Arrays, FixedGraph, StepDecoder
from edge.tflite import TFLite
from edge.types import Array, OpenOptions, PartFiles

FORMATS = ("tflite",)
PACKAGE = "tflite-runtime"
COPIES = 4  # keys and values of the signatures that a long conversation uses, each with memory of its own (measured)

VERSION = "2.14"  # whose interpreter's inner calls are used here


def version() -> str:
    return metadata.version(PACKAGE)


def open(part: PartFiles, options: OpenOptions) -> FixedGraph | StepDecoder:
    """The part's first file. Raises BundleError on a file that is not sound or not what the manifest describes, and
    EngineError on one that the library refuses or would compute wrong."""
    return steps.opened(part, options, lambda file: InterpreterProgram(file, options))


class InterpreterProgram:
    """Each signature has memory of its own. The cache is that of decoding, the many steps; others are given a copy.

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
        threads = options.threads or machine.inspect().cores
        try:
            self._inner: Any = Interpreter(model_path=os.fspath(file.path), num_threads=threads)._interpreter
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"tflite-runtime cannot open {file.path.name}: {error}") from error
        self._signatures = file.signatures
        self._arrays: dict[str, dict[str, Array]] = {}

    def cache(self, length: int) -> Arrays:
        arrays = {name: array for name, array in self._all(f"decode_{length}").items() if name.startswith(PAST)}
        for array in arrays.values():
            array[:] = 0
        return arrays

    def bind(self, name: str) -> Arrays:
        return self._all(name)

    def run(self, name: str, cache: Arrays) -> None:
        for slot, array in self._all(name).items():
            if slot.startswith(PAST) and array is not cache[slot]:
                np.copyto(array, cache[slot])
        try:
            self._inner.Invoke(self._signatures[name].subgraph)
        except RuntimeError as error:
            raise EngineError(f"tflite-runtime failed while running {name}: {error}") from error

    def _all(self, name: str) -> dict[str, Array]:
        """All inputs and outputs of a signature, where the library reads and writes them."""
        if name not in self._arrays:
            signature = self._signatures[name]
            specs = (*signature.inputs, *signature.outputs)
            tensors = (*signature.input_tensors, *signature.output_tensors)
            try:
                self._inner.AllocateTensors(signature.subgraph)
                arrays = [self._inner.tensor(self._inner, index, signature.subgraph) for index in tensors]
            except (ValueError, RuntimeError) as error:
                raise EngineError(f"tflite-runtime cannot prepare {name}: {error}") from error
            self._arrays[name] = {spec.name: array for spec, array in zip(specs, arrays, strict=True)}
        return self._arrays[name]
