"""Engine for `executorch` parts without torch: ExecuTorch's C++ libraries, XNNPACK on the CPU.

`edge-vlm-executorch` brings them; it is made of `native/executorch/`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib import metadata

import edge_executorch
from edge_executorch import Failure

from edge.decoders import methods
from edge.decoders.methods import MethodDecoder, MethodGraph
from edge.errors import EngineError
from edge.formats import xnnpack_descriptor
from edge.formats.executorch import Program
from edge.formats.executorch_caches import Cache
from edge.types import Array, EngineFacts, OpenOptions, PartFiles

ENGINE: EngineFacts = {
    "formats": ("executorch",),
    "package": "edge-vlm-executorch",
    "install": "make wheel-executorch (for ARM: make wheel-executorch-arm), and pip install --force-reinstall what it "
    "names",
    "systems": ("linux",),
    "elsewhere": "its libraries are built for Linux; the engine executorch runs here",
    "resident": {"": 0.95},
    "reaches": {"prefill": 0.43, "decode": 0.85},
}
PACKAGE, INSTALL = ENGINE["package"], ENGINE["install"]
_BUILT = f"it wants glibc 2.32 or newer; {INSTALL}"
_SMALLER = (
    "edge fit says what it takes; edge run --max-memory, or edge export … --context N with a smaller N, takes less"
)


def version() -> str:
    return metadata.version(PACKAGE)


def open(part: PartFiles, options: OpenOptions) -> MethodGraph | MethodDecoder:
    """The part's first file. Raises BundleError on a file that is not sound or not what the manifest describes, and
    EngineError when the library refuses it."""
    return methods.opened(part, options, lambda program, names: _Methods(program, names, options))


class _Methods:
    def __init__(self, program: Program, names: Sequence[str], options: OpenOptions) -> None:
        self._file = program
        try:
            operators, backends = edge_executorch.operators(), edge_executorch.backends()
            methods.require_registered(program, names, operators, backends, f"{PACKAGE} {version()}", INSTALL)
            self._program = self._opened(names, options)
        except OSError as error:
            raise methods.refused("cannot open", program, f"its library does not load: {error}", _BUILT) from error
        except (Failure, MemoryError) as error:
            raise self._refused("cannot open", error) from error

    def _opened(self, names: Sequence[str], options: OpenOptions) -> edge_executorch.Program:
        """With packed weights of the cache, where they can be told apart; those that do not serve are no error."""
        path, threads = self._file.path, options.threads
        if self._file.apart:
            with (
                contextlib.suppress(Failure),
                xnnpack_descriptor.weights(path, f"{PACKAGE}-{version()} {' '.join(names)}", options.warm) as packed,
            ):
                return edge_executorch.Program(path, names, threads, packed=packed)
        return edge_executorch.Program(path, names, threads)

    def run(self, name: str, *arrays: Array) -> Array:
        try:
            (made,) = self._program.run(name, *arrays)
        except (Failure, MemoryError) as error:
            raise self._refused(f"failed in {name} of", error) from error
        return made

    def read(self, name: str, cache: Cache, size: int) -> Array:
        try:
            return self._program.read(name, cache.memory, cache.offset, size)
        except Failure as error:
            raise self._refused(f"keeps no KV cache for {name} of", error) from error

    def write(self, name: str, cache: Cache, data: Array) -> None:
        try:
            self._program.write(name, cache.memory, cache.offset, data)
        except Failure as error:
            raise self._refused(f"keeps no KV cache for {name} of", error) from error

    def _refused(self, what: str, error: Exception) -> EngineError:
        short = isinstance(error, MemoryError) or "out_of_memory" in str(error)
        return methods.refused(what, self._file, str(error), _SMALLER if short else "")
