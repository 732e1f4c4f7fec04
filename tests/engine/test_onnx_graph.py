"""ONNX files that are programs, or take numbers from elsewhere, are refused before a library runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.engines import open_part
from edge.errors import BundleError
from edge.formats import onnx_graph
from edge.types import OpenOptions, PartFiles, TensorSpec

WEIGHT = np.arange(4096, dtype=np.float32).reshape(4, 1024)
Change = Callable[[Any], None]


def sound() -> Any:
    """z = gelu(x @ w), whose w lies in m.onnx.data."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("x", 4), ("z", 1024))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Gelu", ["y"], ["z"], approximate="tanh")]
    weight = numpy_helper.from_array(WEIGHT, "w")
    onnx.external_data_helper.set_external_data(weight, "m.onnx.data", offset=0, length=WEIGHT.nbytes)
    weight.ClearField("raw_data")
    graph = helper.make_graph(nodes, "test", ports[:1], ports[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def write(folder: Path, change: Change = lambda model: None) -> tuple[Path, Path]:
    model = sound()
    change(model)
    path, data = folder / "m.onnx", folder / "m.onnx.data"
    path.write_bytes(model.SerializeToString())
    data.write_bytes(WEIGHT.tobytes())
    return path, data


def test_a_plain_graph_is_taken_and_runs(tmp_path: Path) -> None:
    files = write(tmp_path)
    onnx_graph.check(files[0], files)
    ports = (TensorSpec("x", "float32", (1, 4)),), (TensorSpec("z", "float32", (1, 1024)),)
    part = PartFiles("onnx", "fp32", ("vision",), files, *ports)
    graph: Any = open_part(part, "onnxruntime", OpenOptions(threads=1, context=1))
    assert graph.run({"x": np.ones((1, 4), np.float32)})["z"].shape == (1, 1024)


def test_which_operators_a_graph_has(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    assert onnx_graph.operators(path) == (("MatMul", "y"), ("Gelu", "z"))
    path.write_bytes(b"none")
    with pytest.raises(BundleError, match=r"cannot read m\.onnx"):
        onnx_graph.operators(path)


def body() -> Any:
    flag = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    return helper.make_graph([helper.make_node("Identity", ["c"], ["co"])], "b", [flag], [flag])


def loop(model: Any) -> None:
    model.graph.node.append(helper.make_node("Loop", ["", "yes"], ["o"], body=body()))


def hidden_body(model: Any) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("body", body()))


def bodies(model: Any) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("branches", [body()]))


def own_function(model: Any) -> None:
    opset = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [], opset))


def other_library(model: Any) -> None:
    model.graph.node[1].domain, model.graph.node[1].op_type = "ai.onnx.contrib", "PyOp"


def context(model: Any) -> None:
    model.graph.node[1].domain, model.graph.node[1].op_type = "com.microsoft", "EPContext"


def known_name_elsewhere(model: Any) -> None:
    model.graph.node[1].domain = "own"


def parameter_of_a_function(model: Any) -> None:
    model.graph.node[1].attribute[0].ref_attr_name = "approximate"


def sparse(model: Any) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("p", TensorProto.INT64, [1], [1])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [8]))


def settings(model: Any) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "ort_config", "{}"


def training(model: Any) -> None:
    model.training_info.add()


def texts(model: Any) -> None:
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [b"x"]))


def place(name: str) -> Change:
    def moved(model: Any) -> None:
        entries = model.graph.initializer[0].external_data
        next(entry for entry in entries if entry.key == "location").value = name

    return moved


def constant_elsewhere(model: Any) -> None:
    value = numpy_helper.from_array(WEIGHT, "c")
    onnx.external_data_helper.set_external_data(value, "unlisted.bin", offset=0, length=WEIGHT.nbytes)
    value.ClearField("raw_data")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))


def length(told: str) -> Change:
    def longer(model: Any) -> None:
        entries = model.graph.initializer[0].external_data
        next(entry for entry in entries if entry.key == "length").value = told

    return longer


def no_place(model: Any) -> None:
    del model.graph.initializer[0].external_data[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (loop, "it computes with Loop, which"),
        (hidden_body, "an attribute of Gelu with a field 6"),
        (bodies, "an attribute of Gelu with a field 11"),
        (own_function, "a model with a field 25"),
        (other_library, r"it computes with ai\.onnx\.contrib\.PyOp"),
        (context, r"it computes with com\.microsoft\.EPContext"),
        (known_name_elsewhere, r"it computes with own\.Gelu"),
        (parameter_of_a_function, "an attribute of Gelu with a field 21"),
        (sparse, "a graph with a field 15"),
        (settings, "a model with a field 14"),
        (training, "a model with a field 20"),
        (texts, "a tensor with a field 6"),
        (place("unlisted.bin"), "takes numbers from 'unlisted.bin', which is no file of the part"),
        (place("../m.onnx.data"), "takes numbers from '../m.onnx.data'"),
        (place("./m.onnx.data"), "takes numbers from './m.onnx.data'"),
        (place("/dev/zero"), "takes numbers from '/dev/zero'"),
        (place("m.onnx"), "takes numbers from 'm.onnx'"),
        (constant_elsewhere, "takes numbers from 'unlisted.bin'"),
        (length("99999"), "its numbers end at byte 99999 of m.onnx.data, which has 16384"),
        (length("9" * 400), "a tensor at '0' of '9"),
        (length("-1"), "a tensor at '0' of '-1' bytes"),
        (no_place, "a tensor at '0' of '' bytes in ''"),
    ],
)
def test_what_is_none_of_ours_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    files = write(tmp_path, change)
    (tmp_path / "unlisted.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(BundleError, match=message) as caught:
        onnx_graph.check(files[0], files)
    assert "m.onnx" in caught.value.message
    assert caught.value.hint


def test_a_field_that_comes_again_hides_nothing(tmp_path: Path) -> None:
    """Protocol buffers join two messages of one field, and take the last of two words."""
    path, data = write(tmp_path)
    model = sound()
    graph = model.graph.SerializeToString()
    again = b"".join([b"\x3a", _varint(len(graph)), graph])
    path.write_bytes(path.read_bytes() + again)
    with pytest.raises(BundleError, match="2 graphs"):
        onnx_graph.check(path, (path, data))
    node = model.graph.node[1].SerializeToString() + b"\x22\x04Loop"
    del model.graph.node[1]
    graph = model.graph.SerializeToString() + b"\x0a" + _varint(len(node)) + node
    path.write_bytes(b"\x08\x0a\x3a" + _varint(len(graph)) + graph)
    with pytest.raises(BundleError, match="a node of two operators"):
        onnx_graph.check(path, (path, data))


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


@pytest.mark.parametrize("content", [b"", b"\x3a", b"\x3a\xff\xff\xff\xff\x7f", b"\xff" * 20, b"GGUF" * 9, b"\x0b" * 9])
def test_what_is_no_model_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"m\.onnx"):
        onnx_graph.check(path, (path,))


def test_many_small_fields_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "_MOST", 1000)
    graph = b"\x0a\x00" * 2000  # nodes of nothing
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x3a" + _varint(len(graph)) + graph)
    with pytest.raises(BundleError, match=r"computes with , which|more than 1,000 fields"):
        onnx_graph.check(path, (path,))
    graph = b"\x12\x00" * 2000  # names of nothing
    path.write_bytes(b"\x3a" + _varint(len(graph)) + graph)
    with pytest.raises(BundleError, match="more than 1,000 fields"):
        onnx_graph.check(path, (path,))


def test_any_byte_is_read_or_told(tmp_path: Path) -> None:
    """Never another error."""
    path, data = write(tmp_path)
    content, random, told = path.read_bytes(), np.random.default_rng(7), 0
    for _ in range(1500):
        changed = bytearray(content)
        for at in random.integers(len(content), size=random.integers(1, 4)).tolist():
            changed[at] = int(random.integers(256))
        path.write_bytes(changed)
        try:
            onnx_graph.check(path, (path, data))
        except BundleError:
            told += 1
    assert told > 300
