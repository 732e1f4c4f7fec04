"""How kernels round what they multiply with a linear layer's weights: each format's ACTIVATIONS, against its engine.

One linear layer is given rows with an outlier: one row is larger than the others, and some of its channels are by far.
Every rounding that `exporters.formats` has a word for makes other numbers of them, so the engine's product tells.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from conftest import SPEC
from gguf import GGMLQuantizationType as Kind
from small_models import write
from torch import nn

from edge import plugins
from edge.engines import open_part
from edge.spec import VLMSpec
from edge.types import OpenOptions, PartFiles
from exporters.formats.executorch.linears import STORAGE as EXECUTORCH
from exporters.formats.onnx.lower import STORAGE as ONNX
from exporters.formats.tflite.weights import STORAGE as TFLITE
from exporters.gguf import packing
from exporters.mil import package
from exporters.mil.program import Program
from exporters.models.component import Component
from exporters.models.encoder import Encoder
from exporters.models.layers import Linear

SIDE, ROWS, INPUTS, OUTPUTS = 32, 6, 512, 48
FORMATS = "exporters.formats"
ENGINES = {"onnx": "onnxruntime", "tflite": "litert", "executorch": "executorch"}
STORED = {"onnx": ONNX, "tflite": TFLITE, "executorch": EXECUTORCH}


class Rows(nn.Module):
    """Pixels, as rows, through one linear layer."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(image_size=SIDE)
        self.linear = Linear(INPUTS, OUTPUTS, bias=False)

    def forward(self, pixels):
        return self.linear(pixels.reshape(1, ROWS, INPUTS))


def given():
    """f32 `[ROWS, INPUTS]`."""
    x = np.random.default_rng(4).normal(size=(ROWS, INPUTS)).astype(np.float32)
    x[2] *= 9.0
    x[:, 40] *= 30.0
    x[:, 300] *= 7.0
    return x


def symmetric(x, block, half=False):
    groups = x.reshape(len(x), -1, block)
    scales = np.abs(groups).max(axis=-1, keepdims=True) / 127
    return (np.round(groups / scales) * (scales.astype(np.float16) if half else scales)).reshape(x.shape)


def asymmetric(x, axis):
    low, high = np.minimum(x.min(axis=axis, keepdims=True), 0), np.maximum(x.max(axis=axis, keepdims=True), 0)
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


# The word -> what kernels that round so may make of x: they differ in what they do with the zero, and in halves.
ROUNDED = {
    "none": lambda x: [x, x.astype(np.float16), torch.from_numpy(x).bfloat16().float().numpy()],
    "tensor": lambda x: [asymmetric(x, None), symmetric(x.reshape(1, -1), x.size).reshape(x.shape)],
    "row": lambda x: [asymmetric(x, 1), symmetric(x, INPUTS)],
    "block": lambda x: [symmetric(x, 32), symmetric(x, 32, half=True)],
    "superblock": lambda x: [symmetric(x, 256), symmetric(x, 256, half=True)],
}


def assert_rounded(found, x, weight, word):
    """`found` is what x, rounded so, gives with weight `[OUTPUTS, INPUTS]`, and with no other rounding."""
    errors = {
        kind: min(float(np.abs(rows.astype(np.float64) @ weight.T - found).mean()) for rows in make(x))
        for kind, make in ROUNDED.items()
    }
    assert min(errors, key=errors.get) == word, errors
    others = min(error for kind, error in errors.items() if kind != word)
    assert errors[word] < 0.2 * others, errors


def written(format, scheme, folder):
    torch.manual_seed(0)
    component = Component("vision", lambda: Encoder(Rows(), nn.Identity()), {})
    module = component.build().eval().requires_grad_(False)
    spec = VLMSpec(
        replace(SPEC.image, size=SIDE),
        replace(SPEC.prompt, image_tokens=ROWS),
        replace(SPEC.decoder, hidden=OUTPUTS),
        None,
    )
    source = SimpleNamespace(name="tiny", license="cc0-1.0", sha256="0" * 64, spec=spec)
    writer = plugins.load(FORMATS, format)
    return module, write(writer, component, module, scheme, folder, checkpoint=source)


@pytest.mark.parametrize(("format", "scheme"), [(name, scheme) for name, table in STORED.items() for scheme in table])
def test_an_engine_rounds_as_its_format_says(format, scheme, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module, done = written(format, scheme, tmp_path)
    part = PartFiles(format, scheme, ("vision", "projector"), done.files, done.inputs, done.outputs)
    graph = open_part(part, ENGINES[format], OpenOptions(threads=1, context=1))
    x = given()
    found = graph.run({"pixel_values": x.reshape(1, 3, SIDE, SIDE)})["image_embeds"][0]
    weight = module.tower.linear.weight.double().numpy()
    assert_rounded(found, x, weight, plugins.facts(FORMATS, format)["ACTIVATIONS"][scheme])


@pytest.mark.parametrize("scheme", plugins.facts(FORMATS, "coreml")["ACTIVATIONS"])
def test_a_core_ml_package_rounds_nothing(scheme, tmp_path):
    """Apple's runtime computes what the program says: no operation of it makes integers of activations."""
    _, done = written("coreml", scheme, tmp_path)
    program = Program(package.read(done.files[0].parent))
    kinds = {operation.type for operation in program.function(program.names[0]).operations}
    assert "linear" in kinds and not {kind for kind in kinds if kind in ("quantize", "dequantize")}
    assert plugins.facts(FORMATS, "coreml")["ACTIVATIONS"][scheme] == "none"


@pytest.mark.parametrize("scheme", plugins.facts(FORMATS, "gguf")["ACTIVATIONS"])
def test_ggml_rounds_as_the_format_says(scheme):
    kind = Kind[scheme.removesuffix("_m").removesuffix("_s").upper()]
    torch.manual_seed(0)
    ggml = Ggml()
    stored = ggml.packed(torch.randn(OUTPUTS, INPUTS), kind)
    weight = np.asarray(gguf.dequantize(stored, kind), np.float64).reshape(OUTPUTS, INPUTS)
    x = given()
    word = plugins.facts(FORMATS, "gguf")["ACTIVATIONS"][scheme]
    assert_rounded(ggml.product(stored, kind, x), x, weight, word)


class Ggml:
    """The library of llama.cpp's own, by its C interface."""

    class Params(ctypes.Structure):
        _fields_ = (("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))

    def __init__(self):
        folder = Path(llama_cpp.__file__).parent / "lib"
        suffix = next(iter(folder.glob("libggml-base.*"))).suffixes[0]
        self.base = ctypes.CDLL(str(folder / f"libggml-base{suffix}"))
        self.cpu = ctypes.CDLL(str(folder / f"libggml-cpu{suffix}"))
        for name in ("init", "new_tensor_2d", "mul_mat", "new_graph", "get_data"):
            getattr(self.base, f"ggml_{name}").restype = ctypes.c_void_p
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.cpu.ggml_cpu_init()

    def packed(self, weight, kind):
        if kind.name.lower() in plugins.facts(FORMATS, "gguf")["PACKED_KINDS"]:
            return np.ascontiguousarray(packing.pack(weight, kind))
        source = np.ascontiguousarray(weight.numpy())
        block, length = gguf.GGML_QUANT_SIZES[kind]
        stored = np.zeros((OUTPUTS, INPUTS // block * length), np.uint8)
        pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (source, stored))
        counts = (ctypes.c_int64(number) for number in (0, OUTPUTS, INPUTS))
        assert self.base.ggml_quantize_chunk(int(kind), *pointers, *counts, None) == stored.nbytes
        return stored

    def product(self, stored, kind, x):
        """f32 [ROWS, OUTPUTS], of weights stored in a kind and x f32 [ROWS, INPUTS]."""
        context = ctypes.c_void_p(self.base.ggml_init(self.Params(1 << 26, None, False)))
        tensors = []
        for array, number in ((stored, int(kind)), (np.ascontiguousarray(x), int(Kind.F32))):
            sizes = ctypes.c_int64(INPUTS), ctypes.c_int64(len(array))
            tensor = ctypes.c_void_p(self.base.ggml_new_tensor_2d(context, number, *sizes))
            ctypes.memmove(ctypes.c_void_p(self.base.ggml_get_data(tensor)), array.ctypes.data, array.nbytes)
            tensors.append(tensor)
        out = ctypes.c_void_p(self.base.ggml_mul_mat(context, *tensors))
        graph = ctypes.c_void_p(self.base.ggml_new_graph(context))
        self.base.ggml_build_forward_expand(graph, out)
        assert self.cpu.ggml_graph_compute_with_ctx(context, graph, 1) == 0
        made = np.empty((len(x), OUTPUTS), np.float32)
        ctypes.memmove(made.ctypes.data, ctypes.c_void_p(self.base.ggml_get_data(out)), made.nbytes)
        self.base.ggml_free(context)
        return made
