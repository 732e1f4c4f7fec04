from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes import DECODER, FIXED, GROWING, decoder_part, decoder_tensors, picture, words, write_model_bundle
from onnx import TensorProto, helper, numpy_helper

import edge
from edge.bundle import manifest as bundles
from edge.decoders.kv_graph import kv_decoder
from edge.devices import host
from edge.engines import open_part
from edge.errors import BundleError, EngineError
from edge.formats import onnx_graph
from edge.formats.onnx import Node, filled, model
from edge.inputs.image import pixels
from edge.spec import DecoderSpec
from edge.types import Array, Decoder, Graph, OpenOptions, PartFiles, Segment, TensorSpec, Tokens
from runtimes import onnxruntime

TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "float16": TensorProto.FLOAT16}
MICROSOFT = "com.microsoft"


@pytest.fixture(autouse=True)
def more_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the graphs of this file compute with, beside what exports do."""
    more = {"Greater"}
    monkeypatch.setattr(onnx_graph, "OPERATORS", {**onnx_graph.OPERATORS, "": {*onnx_graph.OPERATORS[""], *more}})


def value(spec: TensorSpec) -> Any:
    return helper.make_tensor_value_info(spec.name, TYPES[spec.dtype], list(spec.shape))


def write(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    nodes: list[Any],
    weights: dict[str, Array] | None = None,
) -> PartFiles:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", [value(t) for t in inputs], [value(t) for t in outputs], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return PartFiles("onnx", "fp32", ("decoder",), (path,), inputs, outputs)


def write_decoder(path: Path, spec: DecoderSpec, length: tuple[str, str]) -> PartFiles:
    """Attention over a cache; ONNX Runtime's own operator in the fixed kind, Concat and plain Attention otherwise."""
    random = np.random.default_rng(5)
    inputs, outputs = decoder_tensors(spec, length, positions=False)
    width, narrow = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    weights: dict[str, Array] = {"last": np.array([-1]), "one": np.array([1]), "axis": np.array([1])}
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["sum"], keepdims=0),
        helper.make_node("Sub", ["sum", "one"], ["before"]),
        helper.make_node("Cast", ["before"], ["seqlens"], to=TensorProto.INT32),
        helper.make_node("Cast", ["sum"], ["total"], to=TensorProto.INT32),
    ]
    x = "inputs_embeds"
    for n in range(spec.layers):
        for name, size in (("q", width), ("k", narrow), ("v", narrow)):
            weights[f"{name}{n}.w"] = random.normal(size=(spec.hidden, size)).astype(np.float32) / 5
            nodes.append(helper.make_node("MatMul", [x, f"{name}{n}.w"], [f"{name}{n}"]))
        caches = [f"past_key_values.{n}.key", f"past_key_values.{n}.value"]
        given = [f"present.{n}.key", f"present.{n}.value"]
        if length == FIXED:
            nodes.append(
                helper.make_node(
                    "GroupQueryAttention",
                    [f"q{n}", f"k{n}", f"v{n}", *caches, "seqlens", "total"],
                    [f"a{n}", *given],
                    domain=MICROSOFT,
                    num_heads=spec.heads,
                    kv_num_heads=spec.kv_heads,
                )
            )
        else:
            nodes += concat_attention(n, spec, weights, caches, given)
        weights[f"o{n}.w"] = random.normal(size=(width, spec.hidden)).astype(np.float32) / 2
        nodes.append(helper.make_node("MatMul", [f"a{n}", f"o{n}.w"], [f"o{n}"]))
        nodes.append(helper.make_node("Add", [x, f"o{n}"], [f"x{n}"]))
        x = f"x{n}"
    weights["head"] = random.normal(size=(spec.hidden, spec.vocab)).astype(np.float32) / 5
    nodes.append(helper.make_node("Gather", [x, "last"], ["final"], axis=1))
    nodes.append(helper.make_node("MatMul", ["final", "head"], ["logits"]))
    part = write(path, inputs, outputs, nodes, weights)
    return replace(part, files=decoder_part(path.parent, spec).files)


def concat_attention(
    n: int, spec: DecoderSpec, weights: dict[str, Array], caches: list[str], given: list[str]
) -> list[Any]:
    """One key-value head each: causal by a mask made from the lengths."""
    assert spec.heads == spec.kv_heads
    weights.update({"split": np.array([0, 0, spec.heads, spec.head_dim]), "join": np.array([0, 0, -1])})
    weights.update({"zero": np.array(0), "step": np.array(1), "low": np.array(-1e9, np.float32)})
    weights["scale"] = np.array(spec.head_dim**-0.5, np.float32)
    nodes = []
    for name in "qkv":
        nodes.append(helper.make_node("Reshape", [f"{name}{n}", "split"], [f"{name}{n}.s"]))
        nodes.append(helper.make_node("Transpose", [f"{name}{n}.s"], [f"{name}{n}.t"], perm=[0, 2, 1, 3]))
    for name, past, present in zip("kv", caches, given, strict=True):
        nodes.append(helper.make_node("Concat", [past, f"{name}{n}.t"], [present], axis=2))
    squeezed = [
        ("Squeeze", ["sum"], f"all{n}"),
        ("Squeeze", ["before"], f"top{n}"),
        ("Range", ["zero", f"all{n}", "step"], f"keys{n}"),
        ("Shape", [f"q{n}.t"], f"shape{n}"),
        ("Slice", [f"shape{n}", "two", "three"], f"count1{n}"),
        ("Squeeze", [f"count1{n}"], f"count{n}"),
        ("Sub", [f"all{n}", f"count{n}"], f"used{n}"),
        ("Range", [f"used{n}", f"all{n}", "step"], f"queries{n}"),
        ("Unsqueeze", [f"queries{n}", "one"], f"rows{n}"),
        ("Greater", [f"keys{n}", f"rows{n}"], f"later{n}"),
        ("Transpose", [given[0]], f"kt{n}"),
        ("MatMul", [f"q{n}.t", f"kt{n}"], f"raw{n}"),
        ("Mul", [f"raw{n}", "scale"], f"scores{n}"),
        ("Where", [f"later{n}", "low", f"scores{n}"], f"masked{n}"),
        ("Softmax", [f"masked{n}"], f"weights{n}"),
        ("MatMul", [f"weights{n}", given[1]], f"mixed{n}"),
        ("Transpose", [f"mixed{n}"], f"back{n}"),
        ("Reshape", [f"back{n}", "join"], f"a{n}"),
    ]
    weights.update({"two": np.array([2]), "three": np.array([3])})
    perms = {f"kt{n}": [0, 1, 3, 2], f"back{n}": [0, 2, 1, 3]}
    for op, takes, gives in squeezed:
        nodes.append(helper.make_node(op, takes, [gives], **({"perm": perms[gives]} if gives in perms else {})))
    return nodes


PAIR = (
    (TensorSpec("x", "float32", (1, "n", 4)), TensorSpec("y", "float32", (1, "n", 4))),
    (TensorSpec("sum", "float32", (1, "n", 4)), TensorSpec("twice", "float32", (1, "n", 4))),
)


@pytest.fixture
def pair(tmp_path: Path) -> Graph:
    nodes = [helper.make_node("Add", ["x", "y"], ["sum"]), helper.make_node("Add", ["x", "x"], ["twice"])]
    return opened(write(tmp_path / "pair.onnx", *PAIR, nodes))


def opened(part: PartFiles, **options: Any) -> Graph:
    found = open_part(part, "onnxruntime", OpenOptions(threads=1, context=64, **options))
    assert not isinstance(found, Decoder)
    return found


def feed(n: int, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(1, n, 4)).astype(np.float32) for name in ("x", "y")}


# the graph


def test_what_a_graph_takes_and_gives(pair: Graph) -> None:
    assert (pair.inputs, pair.outputs) == PAIR
    assert onnxruntime.version()[0].isdigit()


def test_outputs_by_name_whatever_the_sizes(pair: Graph) -> None:
    for n in (3, 1, 5, 5, 2):
        feeds = feed(n, seed=n)
        found = pair.run(feeds)
        np.testing.assert_array_equal(found["sum"], feeds["x"] + feeds["y"])
        np.testing.assert_array_equal(found["twice"], 2 * feeds["x"])


def test_an_output_is_written_where_it_should_go(pair: Graph) -> None:
    feeds, target = feed(3), np.zeros((1, 3, 4), np.float32)
    found = pair.run(feeds, {"twice": target})
    assert found["twice"] is target
    np.testing.assert_array_equal(target, 2 * feeds["x"])
    np.testing.assert_array_equal(found["sum"], feeds["x"] + feeds["y"])
    kept = target.copy()
    np.testing.assert_array_equal(pair.run(feed(3, 1))["twice"], 2 * feed(3, 1)["x"])
    np.testing.assert_array_equal(target, kept), "no longer bound, no longer written"


def test_an_array_that_stays_is_read_anew(pair: Graph) -> None:
    """Bound once, by reference: what is written into it later is what the graph sees."""
    feeds, target = feed(2), np.zeros((1, 2, 4), np.float32)
    pair.run(feeds, {"sum": target})
    feeds["x"][:] = 100
    pair.run(feeds, {"sum": target})
    np.testing.assert_array_equal(target, 100 + feeds["y"])


def test_an_output_may_be_an_input(pair: Graph) -> None:
    feeds = feed(2)
    expected = 2 * feeds["x"]
    pair.run(feeds, {"twice": feeds["x"]})
    np.testing.assert_array_equal(feeds["x"], expected)


def test_results_outlive_the_graph(tmp_path: Path, pair: Graph) -> None:
    first = pair.run(feed(2))["twice"]
    kept = first.copy()
    for seed in range(20):
        pair.run(feed(2, seed))
    np.testing.assert_array_equal(first, kept)
    del pair
    gc.collect()
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            np.empty((1, 3, 5), np.float32),
            r"twice is float32 \[1, n, 4\] in the graph, and the array is float32 \[1, 3, 5\]",
        ),
        (np.empty((3, 4), np.float32), r"the array is float32 \[3, 4\]"),
        (np.empty((1, 3, 4), np.float64), r"the array is float64"),
        (np.empty((1, 3, 8), np.float32)[:, :, ::2], "does not lie in one piece"),
        (np.broadcast_to(np.float32(0), (1, 3, 4)), "does not lie in one piece"),
        (np.frombuffer(bytes(48), np.float32).reshape(1, 3, 4), "cannot be written"),
        (np.empty((1, 2, 4), np.float32), "onnxruntime failed"),
        (np.empty((1, 4, 4), np.float32), "onnxruntime failed"),
    ],
)
def test_an_output_that_does_not_fit(pair: Graph, target: Array, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        pair.run(feed(3), {"twice": target})
    np.testing.assert_array_equal(pair.run(feed(3))["twice"], 2 * feed(3)["x"])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3, 5), np.float32), r"x is float32 \[1, n, 4\]"),
        (np.zeros((1, 3, 4), np.float16), "the array is float16"),
        (np.zeros((1, 3, 8), np.float32)[:, :, ::2], "the array for x does not lie in one piece"),
        (np.zeros((1, 2, 4), np.float32), "onnxruntime failed"),
    ],
)
def test_an_input_that_does_not_fit(pair: Graph, x: Array, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        pair.run({**feed(3), "x": x})
    np.testing.assert_array_equal(pair.run(feed(3))["twice"], 2 * feed(3)["x"])


def test_names_that_are_off(pair: Graph) -> None:
    with pytest.raises(EngineError, match="the graph takes x, y, and was fed x"):
        pair.run({"x": feed(1)["x"]})
    with pytest.raises(EngineError, match="was fed nothing"):
        pair.run({})
    with pytest.raises(EngineError, match="the graph gives sum, twice, and was asked for thrice"):
        pair.run(feed(1), {"thrice": feed(1)["x"]})


# files


def test_a_part_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    part = write(tmp_path / "one.onnx", PAIR[0][:1], PAIR[1][1:], [helper.make_node("Add", ["x", "x"], ["twice"])])
    with pytest.raises(EngineError, match=r"one.onnx is not the part .* it has x, the manifest says x, y") as caught:
        opened(replace(part, inputs=PAIR[0]))
    assert f"edge verify {tmp_path}" in str(caught.value.hint)
    with pytest.raises(EngineError, match="it has twice, the manifest says sum"):
        opened(replace(part, outputs=PAIR[1][:1]))


@pytest.mark.parametrize("damage", ["empty", "half", "foreign", "missing", "folder"])
def test_a_file_that_is_no_model(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "decoder.onnx"
    part = write_decoder(path, DECODER, FIXED)
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "foreign": b"GGUF\x03\0\0\0" * 40}[damage])
    with pytest.raises(BundleError, match=r"cannot read decoder\.onnx|is no ONNX file of ours: ") as caught:
        opened(part)
    assert "copy" in str(caught.value.hint)
    assert "\n" not in caught.value.message


def test_what_the_library_refuses_is_told(tmp_path: Path) -> None:
    part = write(tmp_path / "m.onnx", *PAIR, [helper.make_node("Add", ["x", "nothing"], ["sum"])])
    with pytest.raises(EngineError, match=r"onnxruntime cannot open m.onnx: ") as caught:
        opened(part)
    assert f"edge verify {tmp_path}" in str(caught.value.hint)
    assert caught.value.__cause__ is not None
    assert "\n" not in caught.value.message


def test_external_data(tmp_path: Path) -> None:
    weight = np.arange(4096, dtype=np.float32).reshape(4, 1024)
    inputs, outputs = (TensorSpec("x", "float32", (1, "n", 4)),), (TensorSpec("z", "float32", (1, "n", 1024)),)
    part = write(tmp_path / "m.onnx", inputs, outputs, [helper.make_node("MatMul", ["x", "w"], ["z"])], {"w": weight})
    model = onnx.load(tmp_path / "m.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    part, x = replace(part, files=(*part.files, tmp_path / "m.onnx.data")), feed(2)["x"]
    np.testing.assert_allclose(opened(part).run({"x": x})["z"], x @ weight, rtol=1e-5)
    with pytest.raises(BundleError, match=r"takes numbers from 'm\.onnx\.data', which is no file of the part"):
        opened(replace(part, files=part.files[:1]))
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"cannot read m\.onnx"):
        opened(part)


def test_links_to_one_folder_are_opened_and_to_several_are_explained(tmp_path: Path) -> None:
    weight = np.arange(4096, dtype=np.float32).reshape(4, 1024)
    inputs, outputs = (TensorSpec("x", "float32", (1, "n", 4)),), (TensorSpec("z", "float32", (1, "n", 1024)),)
    blobs, bundle = tmp_path / "blobs", tmp_path / "bundle"
    blobs.mkdir()
    bundle.mkdir()
    path, data = bundle / "m.onnx", bundle / "m.onnx.data"
    part = write(path, inputs, outputs, [helper.make_node("MatMul", ["x", "w"], ["z"])], {"w": weight})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=data.name, size_threshold=0)
    part, x = replace(part, files=(path, data)), feed(2)["x"]
    data.rename(blobs / "1")
    data.symlink_to(blobs / "1")
    with pytest.raises(EngineError, match=r"cannot open m.onnx") as caught:
        opened(part)
    assert f"cp -rL {bundle} DIR" in str(caught.value.hint)
    path.rename(blobs / "0")
    path.symlink_to(blobs / "0")
    np.testing.assert_allclose(opened(part).run({"x": x})["z"], x @ weight, rtol=1e-5)


def test_axes_without_a_name_get_one(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    specs = (TensorSpec("x", "float32", (1, "n", 4)),), (TensorSpec("z", "float32", (1, "n", 4)),)
    part = write(path, *specs, [helper.make_node("Relu", ["x"], ["z"])])
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_param")
    path.write_bytes(model.SerializeToString())
    assert opened(part, debug=True).inputs == (TensorSpec("x", "float32", (1, "x.1", 4)),)


def test_numpy_computes_as_before(pair: Graph) -> None:
    """Opening a session leaves the thread's arithmetic alone: small numbers are not flushed to zero."""
    assert np.float32(1e-39) * np.float32(1) > 0


# lifted

WIDE = replace(DECODER, kv_heads=4)  # a key-value head for every head
PROMPT: list[Segment] = [words("see "), picture(1), words(" what is it?")]


@pytest.fixture(params=[FIXED, GROWING], ids=["fixed", "growing"])
def part(request: pytest.FixtureRequest, tmp_path: Path) -> PartFiles:
    return write_decoder(tmp_path / "decoder.onnx", WIDE, request.param)


def decoder_of(part: PartFiles, context: int = 600) -> Decoder:
    return kv_decoder(opened(part), part, replace(WIDE, context=context), context)


def test_cached_is_uncached_and_whole_is_split(part: PartFiles) -> None:
    decoder = decoder_of(part)
    logits = decoder.extend(PROMPT)
    told: list[int] = []
    for _ in range(12):
        anew = decoder_of(part).extend([*PROMPT, Tokens(tuple(told))])
        np.testing.assert_allclose(logits, anew, rtol=1e-4, atol=1e-4)
        told.append(int(logits.argmax()))
        logits = decoder.extend([Tokens((told[-1],))])
    assert len(set(told)) > 2
    split = decoder_of(part)
    for segment in [*PROMPT, Tokens(tuple(told))]:
        last = split.extend([segment])
    np.testing.assert_allclose(last, logits, rtol=1e-4, atol=1e-4)


def test_growth_and_rewind(part: PartFiles) -> None:
    decoder, text = decoder_of(part), words("x" * 250)
    first = decoder.extend([text])
    for character in "abcdefghij":  # across 256
        logits = decoder.extend([words(character)])
    np.testing.assert_allclose(logits, decoder_of(part).extend([text, words("abcdefghij")]), rtol=1e-4, atol=1e-4)
    decoder.rewind(249)
    np.testing.assert_allclose(decoder.extend([words("x")]), first, rtol=1e-4, atol=1e-4)


def test_the_two_kinds_agree(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fixed, growing = (
        decoder_of(write_decoder(tmp_path / folder / "decoder.onnx", WIDE, length)).extend(PROMPT)
        for folder, length in (("a", FIXED), ("b", GROWING))
    )
    np.testing.assert_allclose(fixed, growing, rtol=1e-4, atol=1e-4)


def test_a_bundle_answers(tmp_path: Path) -> None:
    bundle = write_model_bundle(tmp_path / "bundle")
    decoder = write_decoder(bundle.path / "decoder.onnx", replace(DECODER, context=400), FIXED)
    eye = write(
        bundle.path / "vision.onnx",
        (TensorSpec("pixel_values", "float32", (1, 3, 28, 28)),),
        (TensorSpec("image_embeds", "float32", (1, 4, 32)),),
        [
            helper.make_node("Slice", ["pixel_values", "from", "to", "axes"], ["patch"]),
            helper.make_node("Reshape", ["patch", "shape"], ["image_embeds"]),
        ],
        {
            "from": np.array([0, 0, 0]),
            "to": np.array([1, 8, 16]),
            "axes": np.array([1, 2, 3]),
            "shape": np.array([1, 4, 32]),
        },
    )
    parts = tuple(
        replace(
            old,
            inputs=new.inputs,
            outputs=new.outputs,
            files=tuple(bundles.describe(bundle.path, bundle.path / f.path) for f in old.files),
        )
        for old, new in zip(bundle.manifest.parts, (eye, decoder), strict=True)
    )
    bundles.write_manifest(bundle.path, replace(bundle.manifest, parts=parts))
    picture = np.random.default_rng(0).integers(0, 256, (30, 20, 3)).astype(np.uint8)
    with edge.load(bundle.path, threads=1) as session:
        assert [choice.engine for choice in session.plan.choices] == ["onnxruntime", "onnxruntime"]
        session.ask(picture, "What?", max_tokens=10)
        first = session.last
        session.ask(picture, "What?", max_tokens=10)
        assert session.last.token_ids == first.token_ids
        assert session.last.cached_tokens == first.prompt_tokens - 1
        rows = pixels(picture, bundle.manifest.spec.image)[0, 0, :8, :16].reshape(4, 32)
        np.testing.assert_array_equal(session.encode_image(picture).rows, rows)


# what we ourselves cost


class CountingBinding:
    """Stands before the library's binding, and counts what is bound."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        self.count += name.startswith("bind_")
        return getattr(self._binding, name)


@pytest.mark.parametrize(("length", "binds"), [(FIXED, 3), (GROWING, 3 + 2 * 48)], ids=["fixed", "growing"])
def test_a_step_binds_only_what_moved(tmp_path: Path, length: tuple[str, str], binds: int) -> None:
    """24 layers. Of a fixed cache nothing moves: a step binds its row, its mask and its logits."""
    spec = replace(DECODER, layers=24, context=600)
    inputs, outputs = decoder_tensors(spec, length)
    weights = {"head": np.ones((spec.hidden, spec.vocab), np.float32)}
    nodes = [helper.make_node("MatMul", ["inputs_embeds", "head"], ["logits"])]
    for past, present in zip(inputs[3:], outputs[1:], strict=True):
        if length == FIXED:
            nodes.append(helper.make_node("Identity", [past.name], [present.name]))
        else:
            weights["new"] = np.zeros((1, spec.kv_heads, 1, spec.head_dim), np.float32)
            nodes.append(helper.make_node("Concat", [past.name, "new"], [present.name], axis=2))
    part = write(tmp_path / "decoder.onnx", inputs, outputs, nodes, weights)
    part = replace(part, files=decoder_part(tmp_path, spec).files)
    graph = opened(part)
    assert isinstance(graph, onnxruntime.OnnxGraph)
    decoder = kv_decoder(graph, part, spec, 600)
    for _ in range(3):
        decoder.extend([Tokens((7,))])
    graph._binding = counting = CountingBinding(graph._binding)
    for _ in range(10):
        decoder.extend([Tokens((7,))])
    assert counting.count <= 10 * (binds + 1)


# kernels


def test_what_the_probe_says_is_what_this_processor_has() -> None:
    here = host.inspect().isa
    dot = "dotprod" if "neon" in here else "vnni"
    has = any(dot in name for name in here)
    assert onnxruntime.kernels() == (("neon" if "neon" in here else "avx2"), *([dot] if has else []))


@pytest.mark.parametrize(
    ("processor", "product", "expected"),
    [
        ("x86_64", 32 * 255 * 127, ("avx2", "vnni")),
        ("AMD64", 16 * 32767, ("avx2",)),
        ("aarch64", 0.0, ("neon", "dotprod")),
        ("arm64", 3.1, ("neon",)),
    ],
)
def test_what_a_product_shows(
    processor: str, product: float, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime.platform, "machine", lambda: processor)
    monkeypatch.setattr(onnxruntime, "_multiplied", lambda *graph: product)
    assert onnxruntime.kernels() == expected


# what a machine's speed is measured with


def test_a_model_of_our_own_multiplies_as_numpy_does() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    filling, needed = filled("z", (3, 4), 2, "float32")
    nodes = [filling, Node("Add", ("w", "z"), "sum"), Node("MatMul", ("x", "sum"), "y")]
    ports = [TensorSpec("x", "float32", ("rows", 3))], [TensorSpec("y", "float32", ("rows", 4))]
    written = model(nodes, {"w": weight, **needed}, *ports)
    session = onnxruntime.open_session(written, threads=1)
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ (weight + 2))


def test_products_count_what_they_read_and_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each took a second: the bytes and the operations themselves."""

    def second(work: Callable[[], Any], memory: int = 0) -> float:
        (made,) = work()
        shapes.append((made.shape, str(made.dtype), float(made[0, 0])))
        return 1.0

    shapes: list[tuple[tuple[int, ...], str, float]] = []
    monkeypatch.setattr(onnxruntime, "best", second)
    monkeypatch.setattr(onnxruntime, "usual", second)
    monkeypatch.setattr(onnxruntime, "_WIDTH", 64)
    found = onnxruntime.matmuls(1, 16 * 64 * 128)
    assert found.decoding == 128 * 64 / 2 + 128 * 64 / 32 * 4, "half a byte for each weight, and a scale for each block"
    assert found.int8 == found.fp32 == 2 * 96 * 64 * 64
    square = [((96, 64), "int32", 64.0), ((96, 64), "float32", 64.0)]
    assert shapes == [*square, ((1, 128), "float32", 64.0), *square], "other load may pass by"
