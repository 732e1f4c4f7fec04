"""The binding to LiteRT on small graphs written here; and files that it must not see."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from conftest import REPOSITORY
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge.decoders.signatures import Call
from edge.devices import file_facts
from edge.engines import open_part
from edge.errors import BundleError, EngineError
from edge.formats import tflite, xnnpack_cache
from edge.formats.native_stderr import CapturedStderr
from edge.types import Array, Graph, OpenOptions, PartFiles, TensorSpec
from exporters.tflite_model import Graph as Subgraph
from exporters.tflite_model import Model
from runtimes import litert

OPTIONS = OpenOptions(threads=1, context=64)
WEIGHT = np.random.default_rng(7).normal(size=(48, 64)).astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of packed weights is not touched."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return xnnpack_cache.folder()


def product(path: Path, weight: Array = WEIGHT, names: tuple[str, ...] = ("run",), most: int = 2) -> PartFiles:
    """x `[1, most, 64]` -> y = x @ weight.T, in a subgraph for each name; "free" may be given fewer rows."""
    model = Model()
    for name in names:
        graph = Subgraph(model, name, frozenset({most} if name == "free" else ()))
        graph.inputs["x"] = graph.tensor((1, most, weight.shape[1]), name="x")
        inputs = [graph.inputs["x"], graph.stored("weight", weight), -1]
        shapes = [(1, most, weight.shape[0])]
        options = {"keepNumDims": True}
        (made,) = graph.op("FULLY_CONNECTED", inputs, shapes, options, table="FullyConnectedOptions", version=5)
        graph.outputs["y"] = made
        graph.tensors[made].name = "y"
        model.add(graph)
    model.save(path, lambda done: None)
    ports = ((TensorSpec(n, "float32", (1, most, size)),) for n, size in zip("xy", weight.shape[::-1], strict=True))
    return PartFiles("tflite", "fp32", ("vision", "projector"), (path,), *ports)


def opened(part: PartFiles, options: OpenOptions = OPTIONS) -> Graph:
    graph = open_part(part, "litert", options)
    assert not hasattr(graph, "extend")
    return graph  # type: ignore[return-value]


def x(seed: int = 0) -> Array:
    found: Array = np.random.default_rng(seed).normal(size=(1, 2, 64)).astype(np.float32)
    return found


def test_a_graph_runs_and_keeps_nothing(tmp_path: Path) -> None:
    graph = opened(product(tmp_path / "a.tflite"))
    first = graph.run({"x": x(1)})["y"]
    second = graph.run({"x": x(2)})["y"]
    np.testing.assert_allclose(first, x(1) @ WEIGHT.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second, x(2) @ WEIGHT.T, rtol=1e-4, atol=1e-5)


def test_what_others_say_while_a_file_is_opened_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with CapturedStderr(litert._LIBRARY_LINES, debug=False) as heard:
        os.write(2, b"INFO: Created a delegate.\nERROR: no such kernel\nerror: no such picture\n")
        assert litert._complaint(heard) == ": no such kernel"
    assert capfd.readouterr().err == "error: no such picture\n"


def test_nothing_is_said_on_stderr(tmp_path: Path) -> None:
    part = product(tmp_path / "a.tflite")
    code = (
        "from pathlib import Path; from edge.types import OpenOptions, PartFiles; from runtimes import litert\n"
        f"from edge.formats import tflite; s = tflite.read(Path({str(part.files[0])!r})).signatures['run']\n"
        f"part = PartFiles('tflite', 'fp32', ('vision',), (Path({str(part.files[0])!r}),), s.inputs, s.outputs)\n"
        "litert.open(part, OpenOptions(threads=1, context=64))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_second_start_packs_nothing(tmp_path: Path, cache: Path) -> None:
    part = product(tmp_path / "a.tflite")
    first = opened(part).run({"x": x()})["y"]
    (kept,) = cache.iterdir()
    before = kept.read_bytes()
    second = opened(part).run({"x": x()})["y"]
    assert [path.read_bytes() for path in cache.glob("*.bin")] == [before]
    np.testing.assert_array_equal(first, second)


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells of a process")
def test_weights_that_were_shipped_are_mapped(tmp_path: Path, cache: Path) -> None:
    part = product(tmp_path / "a.tflite")
    first = opened(part).run({"x": x()})["y"]
    (kept,) = cache.glob("*.bin")
    shipped = kept.rename(tmp_path / kept.name)
    graph = opened(part, dataclasses.replace(OPTIONS, warm=(shipped,)))
    assert str(shipped) in Path("/proc/self/maps").read_text(encoding="utf-8")
    np.testing.assert_array_equal(graph.run({"x": x()})["y"], first)
    assert list(cache.glob("*.bin")) == []


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("place", [0, 200, 0.5, -1], ids=str)
def test_a_packed_file_that_was_damaged_is_made_again(
    tmp_path: Path, cache: Path, place: float, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, and with the times that it had: it would be computed from, and nobody would know."""
    part = product(tmp_path / "a.tflite")
    first = opened(part).run({"x": x()})["y"]
    (kept,) = cache.glob("*.bin")
    sound, before = kept.read_bytes(), kept.stat()
    assert kept.stem.endswith(hashlib.sha256(sound).hexdigest())
    monkeypatch.setattr(file_facts, "_SETTLED", 0.0 if settled else 1e9)
    if settled:
        xnnpack_cache._MADE.clear()  # as in another process, which has looked at it once
        np.testing.assert_array_equal(opened(part).run({"x": x()})["y"], first)
    damaged = bytearray(sound)
    at = int(place * len(sound)) if isinstance(place, float) else place
    damaged[at] ^= 255
    kept.write_bytes(damaged)
    os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(opened(part).run({"x": x()})["y"], first)
    assert [path.read_bytes() for path in cache.glob("*.bin")] == [sound]


def test_an_unchanged_packed_file_is_not_read_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = product(tmp_path / "a.tflite")
    opened(part)
    monkeypatch.setattr(file_facts, "_SETTLED", 0.0)
    read: list[Path] = []
    hashed = xnnpack_cache._sha256
    monkeypatch.setattr(xnnpack_cache, "_sha256", lambda path: read.append(path) or hashed(path))
    xnnpack_cache._MADE.clear()
    for _ in range(3):
        opened(part)
    assert sorted(path.suffix for path in read) == [".bin", ".tflite"]


def test_packed_weights_are_on_the_disk_before_they_have_a_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append("sync") or sync(file))
    monkeypatch.setattr(Path, "replace", lambda *paths: done.append(Path(paths[1]).suffix) or replace(*paths))
    opened(product(tmp_path / "a.tflite"))
    assert done[-2:] == ["sync", ".bin"]
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_of_another_user_is_not_used(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    found = opened(product(tmp_path / "a.tflite")).run({"x": x()})["y"]
    np.testing.assert_allclose(found, x() @ WEIGHT.T, rtol=1e-4, atol=1e-5)
    assert not list(cache.glob("*"))


def test_the_same_weights_in_another_place_are_packed_already(tmp_path: Path, cache: Path) -> None:
    """A bundle's proof packs what lies in a staging folder: its first start has that."""
    part = product(tmp_path / "staged.tflite")
    opened(part)
    (kept,) = cache.iterdir()
    before = kept.stat().st_mtime_ns
    path = part.files[0].rename(tmp_path / "model.tflite")
    np.testing.assert_allclose(
        opened(dataclasses.replace(part, files=(path,))).run({"x": x()})["y"], x() @ WEIGHT.T, rtol=1e-4, atol=1e-5
    )
    assert [one.stat().st_mtime_ns for one in cache.glob("*.bin")] == [before]


def test_other_weights_in_the_same_place_are_packed_anew(tmp_path: Path, cache: Path) -> None:
    opened(product(tmp_path / "a.tflite"))
    found = opened(product(tmp_path / "a.tflite", 2 * WEIGHT)).run({"x": x()})["y"]
    np.testing.assert_allclose(found, x() @ (2 * WEIGHT).T, rtol=1e-4, atol=1e-5)
    assert len(list(cache.iterdir())) == 2


def test_a_packed_file_that_was_cut_is_made_again(tmp_path: Path, cache: Path) -> None:
    part = product(tmp_path / "a.tflite")
    opened(part)
    (kept,) = cache.iterdir()
    size = kept.stat().st_size
    kept.write_bytes(kept.read_bytes()[: size // 2])
    np.testing.assert_allclose(opened(part).run({"x": x()})["y"], x() @ WEIGHT.T, rtol=1e-4, atol=1e-5)
    assert [path.stat().st_size for path in cache.iterdir()] == [size]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file
    found = opened(product(tmp_path / "a.tflite")).run({"x": x()})["y"]
    np.testing.assert_allclose(found, x() @ WEIGHT.T, rtol=1e-4, atol=1e-5)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(product(tmp_path / "a.tflite"))
    (first,) = cache.iterdir()
    first.with_suffix(".used").touch()
    os.utime(first.with_suffix(".used"), (1, 1))
    monkeypatch.setattr(xnnpack_cache, "MOST", first.stat().st_size)
    opened(product(tmp_path / "b.tflite", 2 * WEIGHT))
    (second,) = cache.iterdir()
    assert second != first


def test_signatures_share_the_packed_weights(tmp_path: Path, cache: Path) -> None:
    part = product(tmp_path / "a.tflite", names=("one", "two"))
    file = tflite.read(part.files[0])
    program = litert.LiteRtProgram(file, OPTIONS)
    for name in ("one", "two", "one"):
        call = Call(name, part.inputs, part.outputs)
        arrays = program.bind(call)
        arrays["x"][:] = x(3)
        program.run(call)
        np.testing.assert_allclose(arrays["y"], x(3) @ WEIGHT.T, rtol=1e-4, atol=1e-5)
    (kept,) = cache.glob("*.bin")
    assert kept.stat().st_size < 2 * WEIGHT.nbytes


@pytest.mark.parametrize(
    ("begun", "first"), [(0, "prefill"), (3, "decode_4"), (4, "decode_4"), (5, "decode_16"), (17, "prefill")]
)
def test_what_runs_first_is_compiled_at_once(tmp_path: Path, begun: int, first: str) -> None:
    """After a kept prefix that is no beginning of a prompt, but what follows a cache."""
    file = tflite.read(product(tmp_path / "a.tflite", names=("prefill", "decode_16", "decode_4")).files[0])
    assert [*litert.LiteRtProgram(file, dataclasses.replace(OPTIONS, begun=begun))._model._compiled] == [first]


def test_a_call_has_the_size_of_its_memory(tmp_path: Path) -> None:
    part = product(tmp_path / "a.tflite", names=("free", "one"), most=11)
    file = tflite.read(part.files[0])
    assert [file.signatures[name].varying for name in ("free", "one")] == [{"x": (1,), "y": (1,)}, {}]
    program = litert.LiteRtProgram(file, OPTIONS)
    random = np.random.default_rng(0)
    for count in (3, 11, 1, 3):
        ports = [
            (dataclasses.replace(spec, shape=(1, count, spec.shape[2])),) for spec in (*part.inputs, *part.outputs)
        ]
        call = Call("free", *ports)
        rows = random.normal(size=(1, count, 64)).astype(np.float32)
        program.bind(call)["x"][:] = rows
        program.run(call)
        np.testing.assert_allclose(program.bind(call)["y"], rows @ WEIGHT.T, rtol=1e-4, atol=1e-5)


def test_a_call_of_another_size_than_the_file_allows_is_told(tmp_path: Path) -> None:
    part = product(tmp_path / "a.tflite", most=11)
    program = litert.LiteRtProgram(tflite.read(part.files[0]), OPTIONS)
    ports = [(dataclasses.replace(spec, shape=(1, 3, spec.shape[2])),) for spec in (*part.inputs, *part.outputs)]
    call = Call("run", *ports)
    program.bind(call)["x"][:] = 1
    with pytest.raises(EngineError, match="LiteRT failed while running run"):
        program.run(call)


@pytest.mark.parametrize("signature", [[1, -1], [1, -1, 65], [-1, 12, 64], [1, -1, 64, 1]])
def test_a_shape_that_may_change_to_what_it_is_not_is_told(
    tmp_path: Path, signature: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subgraph, "free", lambda self, shape: signature)
    part = product(tmp_path / "a.tflite", names=("free",), most=11)
    with pytest.raises(BundleError, match="a tensor whose shape may change to what it is not"):
        tflite.read(part.files[0])


@pytest.mark.parametrize("found", ["2.0.1", "3.0.0", "1.4"])
def test_a_library_whose_calls_are_not_known_is_refused(
    tmp_path: Path, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = product(tmp_path / "a.tflite")
    monkeypatch.setattr(litert, "version", lambda: found)
    with pytest.raises(EngineError, match=f"ai-edge-litert {found} is not one whose C API is known here"):
        open_part(part, "litert", OPTIONS)


def test_what_the_library_says_is_told(tmp_path: Path) -> None:
    """An operator of a version that it does not have."""
    part = product(tmp_path / "a.tflite")
    content = bytearray(part.files[0].read_bytes())
    code = schema.Model.GetRootAs(content).OperatorCodes(0)._tab
    at = code.Pos + code.Offset(8)
    content[at : at + 4] = (99).to_bytes(4, "little")
    part.files[0].write_bytes(content)
    with pytest.raises(EngineError, match=r"LiteRT refused: .*(FULLY_CONNECTED|version)"):
        open_part(part, "litert", OPTIONS)


def test_a_part_that_xnnpack_does_not_take_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a build without it: the options then name no delegate."""
    part = product(tmp_path / "a.tflite")
    monkeypatch.setattr(litert, "CPU_OPTIONS", "kernel_mode = 2\n")
    with pytest.raises(EngineError, match="without XNNPACK"):
        open_part(part, "litert", OPTIONS)


def damaged(part: PartFiles, change: Callable[[bytes], bytes]) -> PartFiles:
    part.files[0].write_bytes(change(part.files[0].read_bytes()))
    return part


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b"",
        lambda b: b[:6],
        lambda b: b[:200],
        lambda b: b[: len(b) // 2],
        lambda b: b[:4] + b"TFL2" + b[8:],
        lambda b: b"PK\3\4" + bytes(100),
        lambda b: b"\xff" * 4 + b[4:],
        lambda b: bytes(4) + b[4:],
    ],
)
def test_files_that_are_cut_or_foreign_are_told(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    part = damaged(product(tmp_path / "a.tflite"), change)
    with pytest.raises(BundleError, match=r"TFLite|cannot read"):
        open_part(part, "litert", OPTIONS)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(56, 0)  # no signature is left
@given(st.integers(0, 1 << 30), st.integers(0, 255))
def test_a_changed_byte_is_read_or_told(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.tflite"
    content = bytearray(product(path, names=("one", "free"), most=11).files[0].read_bytes())
    content[at % (len(content) - WEIGHT.nbytes)] = value
    path.write_bytes(content)
    with contextlib.suppress(BundleError):  # nothing else may come
        assert set(tflite.read(path).signatures)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    part = product(tmp_path / "a.tflite")
    part.files[0].unlink()
    with pytest.raises(BundleError, match="cannot read"):
        open_part(part, "litert", OPTIONS)


def test_a_part_of_other_tensors_is_told(tmp_path: Path) -> None:
    part = product(tmp_path / "a.tflite", names=("one", "two"))
    with pytest.raises(BundleError, match="not the part that the manifest describes"):
        open_part(part, "litert", OPTIONS)
