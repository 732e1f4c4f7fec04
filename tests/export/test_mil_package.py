"""Packages that are not ours, damaged or dishonest: each is refused, and none ends the process."""

from __future__ import annotations

import json
import shutil
import struct

import mil_fakes
import numpy as np
import pytest
import torch
from coremltools import proto
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.libmilstoragepython import _BlobStorageWriter as BlobWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import BundleError, EdgeError, EngineError
from edge.spec import DecoderSpec
from edge.types import OpenOptions, PartFiles, TensorSpec
from exporters.evaluators import mil
from exporters.mil import package
from exporters.mil.blob import Blob
from exporters.mil.program import Program

WEIGHT = np.arange(12, dtype=np.float16).reshape(3, 4)


def whole(x):
    four = np.array(range(-8, 4), np.int8).astype(types.np_int4_dtype).reshape(3, 4)
    y = mb.linear(x=x, weight=WEIGHT, bias=np.zeros(3, np.float16))
    scaled = mb.constexpr_blockwise_shift_scale(data=four, scale=np.ones((3, 2), np.float16))
    return mb.add(x=y, y=mb.linear(x=x, weight=scaled, bias=np.zeros(3, np.float16)), name="y")


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    return mil_fakes.write(tmp_path_factory.mktemp("sound"), main=mil_fakes.function(whole, {"x": (1, 4)}))


@pytest.fixture
def copied(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "Made.mlpackage")


def model_file(path):
    return path / "Data" / "com.apple.CoreML" / "model.mlmodel"


def weight_file(path):
    return path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def run(path):
    return Program(package.read(path)).run("main", {"x": torch.ones(1, 4).half()})["y"].tolist()


def change(path, edit):
    spec = proto.Model_pb2.Model.FromString(model_file(path).read_bytes())
    edit(spec)
    model_file(path).write_bytes(spec.SerializeToString())


def block(spec):
    return spec.mlProgram.functions["main"].block_specializations["CoreML8"]


def test_a_sound_one(sound):
    expected = WEIGHT.sum(axis=1) + np.arange(-8, 4).reshape(3, 4).sum(axis=1)
    assert run(sound) == [expected.tolist()]


def newer(spec):
    spec.specificationVersion = 10


def older(spec):
    spec.specificationVersion = 8


def network(spec):
    spec.ClearField("mlProgram")
    spec.neuralNetwork.layers.add(name="x")


def nameless(spec):
    del spec.description.functions[:]


def other_default(spec):
    spec.description.defaultFunctionName = "forward"


@pytest.mark.parametrize(
    ("edit", "message", "hint"),
    [
        (newer, "is of specification 10; this edge-vlm reads up to 9", "pip install -U"),
        (older, "specification 8, which knows neither states nor functions", "iOS 18 and macOS 15"),
        (network, "holds no ML program", None),
        (nameless, "of several functions", None),
        (other_default, "describes functions that it does not hold", None),
    ],
)
def test_a_specification_that_is_not_ours(copied, edit, message, hint):
    change(copied, edit)
    with pytest.raises(BundleError, match=message) as caught:
        package.read(copied)
    assert hint is None or hint in caught.value.hint


@pytest.mark.parametrize(
    "listed",
    [
        b"",
        b"[]",
        b"{}",
        b'{"itemInfoEntries": {}, "rootModelIdentifier": "X"}',
        b'{"itemInfoEntries": {"X": {"path": 3}}, "rootModelIdentifier": "X"}',
        b'{"itemInfoEntries": 7, "rootModelIdentifier": "X"}',
        b"[" * 100_000,
    ],
)
def test_a_list_that_is_none(copied, listed):
    (copied / "Manifest.json").write_bytes(listed)
    with pytest.raises(BundleError, match="is no Core ML package"):
        package.read(copied)


@pytest.mark.parametrize("place", ["../../../etc/passwd", "/etc/passwd"])
def test_a_list_that_leads_out(copied, place):
    listed = json.loads((copied / "Manifest.json").read_bytes())
    listed["itemInfoEntries"][listed["rootModelIdentifier"]]["path"] = place
    (copied / "Manifest.json").write_text(json.dumps(listed))
    with pytest.raises(BundleError, match="lists a file outside itself"):
        package.read(copied)


def test_files_that_are_missing(copied):
    weights = weight_file(copied).read_bytes()
    weight_file(copied).unlink()
    with pytest.raises(BundleError, match=r"weight.bin is no sound weight file: it cannot be read"):
        package.read(copied)
    weight_file(copied).write_bytes(weights)
    model_file(copied).unlink()
    with pytest.raises(BundleError, match="its program cannot be read"):
        package.read(copied)
    with pytest.raises(BundleError, match="is no Core ML package"):
        package.read(copied.with_name("nothing"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it cannot be read"),
        (b"x" * 63, "it has 63 bytes"),
        (struct.pack("<II56x", 1, 1), "version 1, expected 2"),
        (struct.pack("<II56x", 1, 2), "lies outside it"),
        (struct.pack("<II56x", 1, 2) + bytes(64), "no record of 16-bit"),
        (struct.pack("<II56xIIQQQ32x", 1, 2, 0xDEADBEEF, 1, 24, 128, 0), "has 24 bytes at 128"),
        (struct.pack("<II56xIIQQQ32x", 1, 2, 0xDEADBEEF, 1, 2**63, 128, 0), "expected 12 of 16 bits"),
        (struct.pack("<II56xIIQQQ32x", 1, 2, 0xDEADBEEF, 1, 24, 2**63, 0), "expected 12 of 16 bits"),
    ],
)
def test_a_weight_file_that_lies(copied, content, message):
    weight_file(copied).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        run(copied)


def far(spec):
    for op in block(spec).operations:
        if op.attributes["val"].WhichOneof("value") == "blobFileValue":
            op.attributes["val"].blobFileValue.offset = 2**62


def large(spec):
    for op in block(spec).operations:
        if op.attributes["val"].WhichOneof("value") == "blobFileValue":
            op.attributes["val"].type.tensorType.dimensions[0].constant.size = 2**40


def wordless(spec):
    block(spec).operations[-1].inputs["x"].arguments[0].name = "nobody"


def other_shape(spec):
    block(spec).operations[-1].outputs[0].type.tensorType.dimensions[0].constant.size = 7


def odd_type(spec):
    for op in block(spec).operations:
        op.outputs[0].type.tensorType.dataType = 13  # bfloat16


def twice(spec):
    block(spec).outputs.append("nobody")


def without_block(spec):
    spec.mlProgram.functions["main"].opset = "CoreML9"


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (far, BundleError, "lies outside it"),
        (large, BundleError, "expected 4398046511104 of 16 bits"),
        (wordless, EngineError, "cannot be computed: 'nobody'"),
        (other_shape, EngineError, r"y is \[1, 3\], declared is \[7, 3\]"),
        (odd_type, EngineError, "no numbers of the type BFLOAT16"),
        (twice, EngineError, "gives no 'nobody'"),
        (without_block, EngineError, "has no block"),
    ],
)
def test_a_program_that_lies(copied, edit, error, message):
    change(copied, edit)
    with pytest.raises(error, match=message):
        run(copied)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_program_of_flipped_bytes_is_refused_or_runs(sound, tmp_path_factory, data):
    path = shutil.copytree(sound, tmp_path_factory.mktemp("flipped") / "Made.mlpackage")
    file = data.draw(st.sampled_from([model_file(path), weight_file(path), path / "Manifest.json"]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        run(path)
    except EdgeError:
        pass
    finally:
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("method", "kind", "bits", "values"),
    [
        ("write_fp16_data", "<f2", 16, np.array([1, -2, 0.5], np.float16)),
        ("write_float_data", "<f4", 32, np.array([1, -2, 0.1], np.float32)),
        ("write_int8_data", "i1", 8, np.array([-128, 0, 127], np.int8)),
        ("write_uint8_data", "u1", 8, np.array([0, 255, 3], np.uint8)),
        ("write_int16_data", "<i2", 16, np.array([-32768, 0, 32767], np.int16)),
        ("write_uint16_data", "<u2", 16, np.array([0, 65535], np.uint16)),
        ("write_int32_data", "<i4", 32, np.array([-(2**31), 5], np.int32)),
        ("write_uint32_data", "<u4", 32, np.array([2**32 - 1, 5], np.uint32)),
        ("write_int4_data", "i1", 4, np.arange(-8, 7, dtype=np.int8)),
        ("write_uint4_data", "u1", 4, np.arange(15, dtype=np.uint8)),
        ("write_uint1_data", "u1", 1, np.array([1, 0, 1, 1, 0, 0, 1, 0, 1], np.uint8)),
        ("write_uint2_data", "u1", 2, np.arange(11, dtype=np.uint8) % 4),
        ("write_uint3_data", "u1", 3, np.arange(11, dtype=np.uint8) % 8),
        ("write_uint6_data", "u1", 6, np.arange(50, 63, dtype=np.uint8)),
    ],
)
def test_numbers_as_coremltools_writes_them(tmp_path, method, kind, bits, values):
    writer = BlobWriter(str(tmp_path / "weight.bin"))
    getattr(writer, method)(values.view(np.uint16) if kind == "<f2" else values)
    del writer
    found = Blob(tmp_path / "weight.bin").array(64, kind, bits, (len(values), 1))
    np.testing.assert_array_equal(found[:, 0], values)


def test_a_part_that_is_not_what_the_manifest_says(sound, tmp_path):
    files = (sound / "Manifest.json",)
    wrong = PartFiles("coreml", "w8", ("vision",), files, (TensorSpec("pixels", "float32", (1, 4)),), ())
    with pytest.raises(EngineError, match="main takes x and gives y"):
        mil.open(wrong, OpenOptions(threads=1, context=8))
    np.save(tmp_path / "embed_tokens.npy", np.zeros((5, 4), np.float32))
    spec = DecoderSpec(1, 1, 1, 4, 4, 5, 8, 10000.0)
    decoder = PartFiles("coreml", "w8", ("decoder",), (*files, tmp_path / "embed_tokens.npy"), (), (), spec)
    with pytest.raises(EngineError, match="has no function 'prefill'"):
        mil.open(decoder, OpenOptions(threads=1, context=8))
    with pytest.raises(BundleError, match="is no list of a Core ML package"):
        mil.open(
            PartFiles("coreml", "w8", ("vision",), (tmp_path / "x.onnx",), (), ()), OpenOptions(threads=1, context=8)
        )


def test_states_that_the_model_does_not_have(tmp_path):
    def remembering(state, x):
        return mb.coreml_update_state(state=state, value=mb.add(x=mb.read_state(input=state), y=x))

    made = {n: mil_fakes.function(remembering, {"x": (4,)}, {"state": (4,)}) for n in ("prefill", "decode")}
    path = mil_fakes.write(tmp_path, **made)
    np.save(tmp_path / "embed_tokens.npy", np.zeros((5, 4), np.float32))
    files = (path / "Manifest.json", tmp_path / "embed_tokens.npy")
    spec = DecoderSpec(1, 1, 1, 4, 4, 5, 8, 10000.0)
    with pytest.raises(
        EngineError, match=r"the states of prefill hold \[\[4\]\], expected keys and values of \[1, 1, 1"
    ):
        mil.open(PartFiles("coreml", "w8", ("decoder",), files, (), (), spec), OpenOptions(threads=1, context=8))
