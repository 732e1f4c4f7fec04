"""Engine for `onnx` parts: ONNX Runtime on the CPU, on CUDA and on TensorRT."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnxruntime as ort

from edge.decoders.function_graph import listed
from edge.devices.probe import Matmuls, best, usual
from edge.errors import EngineError, ProviderError, first_line
from edge.formats import onnx_graph
from edge.formats.onnx import CONTRIBUTED, Node, filled, model
from edge.planning.placement import Placed
from edge.types import Array, EngineFacts, OpenOptions, PartFiles, Provider, TensorSpec
from runtimes.onnxruntime import card
from runtimes.onnxruntime.graph import OnnxGraph, open_session

ENGINE: EngineFacts = {
    "formats": ("onnx",),
    "package": "onnxruntime",
    # Weights are put in another order for the processor, those of 4 bits beside the file's own. Without that
    # (session.disable_prepacking) a token takes seconds.
    "resident": {"w8a8": 1.05, "": 1.35},
    "reaches": {"decode": 0.7},
    # What lies wholly on the card: CUDA's GroupQueryAttention takes fp16 only, nothing there multiplies bytes as the
    # CPU's kernels do, and TensorRT knows none of a decoder's operators.
    "providers": {
        "cuda": ("vision fp32", "vision fp16", "vision w16a16", "decoder w16a16", "decoder w4a16"),
        "tensorrt": ("vision fp32", "vision fp16", "vision w16a16"),
    },
    "kernels": "a probe: how its 8-bit matmuls round and saturate",
    "matmuls": "its own, of each kind of weights",
}
_ROWS = 32  # of a block of 4-bit weights
_WIDTH, _COLUMNS, _POSITIONS = 2048, 1 << 16, 96  # 75 MB of 4-bit weights: more than caches hold


def version() -> str:
    return str(ort.__version__)


def providers() -> dict[Provider, str]:
    """See `edge.types.Runtime`."""
    return card.refusals()


def kernels() -> tuple[str, ...]:
    """The least that explains the results of one product; the library itself does not tell (its source: `mlas/lib`).

    On x86 bytes are multiplied by `vpmaddubsw`, whose sums of two saturate at 32767, or with VNNI, whose do not. On ARM
    the activations that 4-bit weights meet are rounded to 8 bits where there are dot products, and else are not; i8mm
    computes the same.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        ones = np.full((_ROWS, 1), 127, np.int8)
        node = Node("MatMulInteger", ("x", "w"), "y")
        product = _multiplied(node, {"w": ones}, np.full((1, _ROWS), 255, np.uint8), "int32")
        return ("avx2", "vnni") if product == _ROWS * 255 * 127 else ("avx2",)
    small = np.full((1, _ROWS), 0.1, np.float32)  # beside 127, in 8 bits, nothing
    small[0, 0] = 127
    codes = np.full((1, 1, _ROWS // 2), 0x99, np.uint8)  # 9 is 1
    codes[0, 0, 0] = 0x98  # and 8 is 0, for the 127
    product = _multiplied(_four_bits(_ROWS, 1), {"w": codes, "scales": np.ones(1, np.float32)}, small, "float32")
    return ("neon", "dotprod") if product == 0 else ("neon",)


def matmuls(threads: int, memory: int) -> Matmuls:
    columns = max(64, min(_COLUMNS, memory // 16 // _WIDTH))
    codes, scales = (columns, _WIDTH // _ROWS, _ROWS // 2), (columns * _WIDTH // _ROWS,)
    works = []
    for op, takes, weight, gives in (("MatMulInteger", "uint8", "int8", "int32"), ("MatMul", *["float32"] * 3)):
        x, y = (TensorSpec(name, dtype, (_POSITIONS, _WIDTH)) for name, dtype in (("x", takes), ("y", gives)))
        works.append(_work(Node(op, ("x", "w"), "y"), [filled("w", (_WIDTH, _WIDTH), 1, weight)], x, y, threads))
    before = list(map(best, works))
    weights = [filled("w", codes, 0x99, "uint8"), filled("scales", scales, 1, "float32")]
    x, y = TensorSpec("x", "float32", (1, _WIDTH)), TensorSpec("y", "float32", (1, columns))
    token = usual(_work(_four_bits(_WIDTH, columns), weights, x, y, threads), memory)
    seconds = map(min, before, map(best, works))  # another process may have had a core for a while
    read, done = math.prod(codes) + 4 * math.prod(scales), 2.0 * _POSITIONS * _WIDTH**2
    return Matmuls(read / token, *(done / one for one in seconds))


def _four_bits(rows: int, columns: int) -> Node:
    settings = {"K": rows, "N": columns, "bits": 4, "block_size": _ROWS, "accuracy_level": 4}
    return Node("MatMulNBits", ("x", "w", "scales"), "y", settings, CONTRIBUTED)


def _multiplied(node: Node, weights: Mapping[str, Array], feed: Array, gives: str) -> float:
    """The one number that a node gives."""
    ports = TensorSpec("x", str(feed.dtype), feed.shape), TensorSpec("y", gives, (1, 1))
    session = open_session(model([node], weights, ports[:1], ports[1:]), threads=1)
    return float(session.run(None, {"x": feed})[0][0, 0])


def _work(
    node: Node, weights: Sequence[tuple[Node, Mapping[str, Array]]], takes: TensorSpec, gives: TensorSpec, threads: int
) -> Callable[[], object]:
    """What computes a node once, of ones."""
    tensors = {name: array for _, needed in weights for name, array in needed.items()}
    written = model([*(made for made, _ in weights), node], tensors, [takes], [gives])
    session = open_session(written, threads)
    feeds = {takes.name: np.ones([int(size) for size in takes.shape], takes.dtype)}
    return lambda: session.run(None, feeds)


def open(part: PartFiles, options: OpenOptions) -> OnnxGraph:
    """The part's first file as a graph. Raises BundleError on a file that computes with what none of ours does, and
    EngineError on one that ONNX Runtime refuses, or that does not take and give what the part declares."""
    path = part.files[0]
    onnx_graph.check(path, part.files)
    try:
        if options.provider == "cpu":
            graph = OnnxGraph(open_session(str(path), options.threads, options.debug))
        else:
            graph = card.CardGraph(card.open_session(path, options))
    except ProviderError:
        raise
    except Exception as error:  # its errors share no base class
        raise EngineError(f"onnxruntime cannot open {path.name}: {first_line(error)}", hint=_way_out(part)) from error
    for declared, found in ((part.inputs, graph.inputs), (part.outputs, graph.outputs)):
        if (wanted := {t.name for t in declared}) != (given := {t.name for t in found}):
            raise EngineError(
                f"{path.name} is not the part that the manifest describes: it has {listed(given)}, "
                f"the manifest says {listed(wanted)}",
                hint=_verify(part),
            )
    return graph


def placement(part: PartFiles) -> Iterator[Placed]:
    """Where each node of a part runs, as the library says of a session on the card: see `edge.types.Runtime`."""
    options = OpenOptions(threads=1, context=1, provider="cuda")
    return card.assigned(card.open_session(part.files[0], options, card.RECORDED))


def _way_out(part: PartFiles) -> str:
    """Weights must lie in the graph's own folder: as links, only where both lead to the same, as in the hub's cache."""
    if len({path.resolve().parent for path in part.files}) > 1:
        return f"its files are links to several folders: cp -rL {part.files[0].parent} DIR, and use DIR"
    return _verify(part)


def _verify(part: PartFiles) -> str:
    return f"edge verify {part.files[0].parent}"
