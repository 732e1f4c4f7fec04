"""What an ONNX part declares of its shapes and dtypes, against the checker of ONNX and what ONNX Runtime computes.

Builds of ONNX Runtime other than the desktop's refuse a file that declares what it does not compute.
"""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import REPOSITORY
from onnx import TensorProto, defs, helper, shape_inference
from small_models import randomized, write

from exporters.formats import onnx as format
from exporters.models.component import Component
from exporters.models.decoders import llama
from exporters.models.encoder import Encoder
from exporters.models.projectors import ProjectorConfig, find
from exporters.models.vision import clip
from exporters.pipeline import components
from exporters.sources.checkpoint import open_checkpoint

WARNING = 2
TINY = llama.tiny().config
NEW, PAST = 3, 4  # positions of a call to the decoder
SIZES = {"sequence_length": NEW, "total_sequence_length": PAST + NEW, "cache_length": PAST + NEW}


def tiny_encoder(kind, grid):
    tower = dataclasses.replace(clip.tiny().config, image_size=14 * grid)
    projector, depth = find(kind)
    sizes = ProjectorConfig(tower.hidden, TINY.hidden, grid, depth=depth)
    return Component("vision", lambda: Encoder(clip.Tower(tower), projector.Projector(sizes)), {})


def demo(role):
    checkpoint = open_checkpoint(str(REPOSITORY / "exporters/demo/checkpoint"))
    component = components(checkpoint)[role == "decoder"]
    return component, component.load(checkpoint.weights)


def twin(component):
    return component, randomized(component.build())


PARTS = {
    "demo vision": ("vision", lambda: demo("vision")),
    "ldpnetv2": ("vision", lambda: twin(tiny_encoder("ldpnetv2", 24))),
    "ldpnetv2 on a grid of 7": ("vision", lambda: twin(tiny_encoder("ldpnetv2", 7))),
    "ldpnet on a grid of 7": ("vision", lambda: twin(tiny_encoder("ldpnet", 7))),
    "mlp": ("vision", lambda: twin(tiny_encoder("mlp2x_gelu", 4))),
    "linear": ("vision", lambda: twin(tiny_encoder("linear", 4))),
    "demo decoder": ("decoder", lambda: demo("decoder")),
    "llama": ("decoder", lambda: twin(Component("decoder", lambda: llama.Decoder(TINY), {}))),
    "llama with biases": (
        "decoder",
        lambda: twin(
            Component(
                "decoder", lambda: llama.Decoder(dataclasses.replace(TINY, attention_bias=True, mlp_bias=True)), {}
            )
        ),
    ),
}


# One part of each role in every scheme, and every part in the scheme that changes its graph most.
CASES = [
    (name, scheme)
    for name, (role, _) in PARTS.items()
    for scheme in format.SCHEMES[role]
    if name in ("ldpnetv2", "llama") or scheme == {"vision": "w8a8", "decoder": "w4"}[role]
]


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def path(request, tmp_path_factory):
    name, scheme = request.param
    component, module = PARTS[name][1]()
    return write(format, component, module, scheme, tmp_path_factory.mktemp("part"), lambda done: None).files[0]


def session(source, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    settings = ort.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads, settings.graph_optimization_level = WARNING, 1, level
    return ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def feeds(inputs):
    generator = np.random.default_rng(0)
    shapes = {port.name: [SIZES.get(size, size) for size in port.shape] for port in inputs}
    kinds = {port.name: np.float16 if port.type == "tensor(float16)" else np.float32 for port in inputs}
    numbers = {name: generator.normal(size=shape).astype(kinds[name]) for name, shape in shapes.items()}
    return numbers | ({"attention_mask": np.ones((1, PAST + NEW), np.int64)} if "attention_mask" in shapes else {})


def dims(value):
    """None: only the dtype is declared."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim]


def misdeclared(path, model):
    """Each value whose declared shape or dtype is not what a run gives, with both; symbols must agree throughout."""
    declared = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    made = {name for node in model.graph.node for name in node.output}
    asked = [name for name in declared if name in made]
    assert len(asked) > 20
    del model.graph.output[:]
    model.graph.output.extend(declared[name] for name in asked)
    onnx.save(model, path.with_suffix(".all.onnx"))  # beside the weights, which it names
    with_all = session(str(path.with_suffix(".all.onnx")), ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    options = ort.RunOptions()
    options.log_severity_level = WARNING
    found = dict(zip(asked, with_all.run(asked, feeds(with_all.get_inputs()), options), strict=True))
    symbols: dict[str, int] = dict(SIZES)
    wrong = {}
    for name in asked:
        want, have = dims(declared[name]), list(found[name].shape)
        same = want is None or (
            len(want) == len(have)
            and all(
                symbols.setdefault(w, h) == h if isinstance(w, str) else w == h for w, h in zip(want, have, strict=True)
            )
        )
        dtype = helper.tensor_dtype_to_np_dtype(declared[name].type.tensor_type.elem_type)
        if not same or dtype != found[name].dtype:
            wrong[name] = (want, dtype, have, found[name].dtype)
    return wrong


def test_a_session_opens_and_runs_without_a_warning(path, capfd):
    opened = session(str(path))
    options = ort.RunOptions()
    options.log_severity_level = WARNING
    opened.run(None, feeds(opened.get_inputs()), options)
    assert capfd.readouterr() == ("", "")


def test_what_is_declared_is_what_is_computed(path):
    assert misdeclared(path, onnx.load(path, load_external_data=False)) == {}


def test_the_checker_of_onnx_takes_it(path):
    with known_to_the_checker():
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


@contextlib.contextmanager
def known_to_the_checker():
    """ONNX Runtime adds one operator to ONNX's own domain, which the checker refuses there; what is in com.microsoft it
    passes over."""
    name = "SimplifiedLayerNormalization"
    port = defs.OpSchema.FormalParameter
    schema = defs.OpSchema(
        name,
        "",
        1,
        inputs=[port("X", "T"), port("scale", "T")],
        outputs=[port("Y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
        attributes=[
            defs.OpSchema.Attribute("axis", defs.OpSchema.AttrType.INT),
            defs.OpSchema.Attribute("epsilon", defs.OpSchema.AttrType.FLOAT),
            defs.OpSchema.Attribute("stash_type", defs.OpSchema.AttrType.INT),
        ],
    )
    defs.register_schema(schema)
    try:
        yield
    finally:
        defs.deregister_schema(name, 1, "")


def test_a_wrong_shape_or_dtype_is_seen(tmp_path, capfd):
    """By each of the tests above, so that they can fail."""
    component, module = PARTS["llama"][1]()
    path = write(format, component, module, "fp32", tmp_path, lambda done: None).files[0]
    norm = next(n for n in onnx.load(path, load_external_data=False).graph.node if n.op_type.startswith("Skip"))

    def changed(name, change):
        model = onnx.load(path, load_external_data=False)
        change(next(value for value in model.graph.value_info if value.name == name).type.tensor_type)
        return model

    wide = changed(norm.output[0], lambda kind: setattr(kind.shape.dim[2], "dim_value", 7))
    assert list(misdeclared(path, wide)) == [norm.output[0]]
    onnx.save(wide, path.with_suffix(".wide.onnx"))
    session(str(path.with_suffix(".wide.onnx")))
    assert "Error merging shape info" in capfd.readouterr().err
    product = next(n for n in wide.graph.node if n.op_type == "MatMul").output[0]
    other = changed(product, lambda kind: setattr(kind, "elem_type", TensorProto.INT64))
    with known_to_the_checker(), pytest.raises(shape_inference.InferenceError):
        shape_inference.infer_shapes(other, check_type=True, strict_mode=True, data_prop=True)


def test_statistics_of_a_norm_that_nobody_reads_are_left_out(tmp_path):
    component, module = PARTS["llama"][1]()
    path = write(format, component, module, "fp32", tmp_path, lambda done: None).files[0]
    model = onnx.load(path, load_external_data=False)
    norms = [node for node in model.graph.node if node.op_type == "SkipSimplifiedLayerNormalization"]
    assert len(norms) == 2 * TINY.layers - 1
    assert all(list(node.output[1:3]) == ["", ""] and node.output[0] and node.output[3] for node in norms)
