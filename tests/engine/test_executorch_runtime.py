"""Both bindings to ExecuTorch on programs written here; and files that they must not see."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import cast

import edge_executorch
import numpy as np
import pytest
import torch
from attention_programs import FOLDER
from conftest import REPOSITORY
from edge_executorch import Failure, Program
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.exir.schema import Tensor
from executorch.extension.pybindings import _portable_lib as bindings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.engines import open_part
from edge.errors import BundleError, EngineError
from edge.formats import executorch
from edge.spec import DecoderSpec
from edge.types import Array, OpenOptions, PartFiles, TensorSpec, Tokens
from exporters.formats.executorch import lower
from exporters.formats.executorch.linears import Product, store
from exporters.formats.executorch.lower import Method
from exporters.formats.executorch.methods import TokenEmbedding

TELLS = {  # of each engine: how many threads there are, and where it learns what is registered
    "executorch": (
        bindings._threadpool_get_thread_count,
        (bindings, "_get_operator_names", "_get_registered_backend_names"),
    ),
    "executorch_native": (edge_executorch.threads, (edge_executorch, "operators", "backends")),
}
HIDDEN, VOCAB, CONTEXT = 4, 10, 8
OPTIONS = OpenOptions(threads=1, context=CONTEXT)
SPEC = DecoderSpec(1, 1, 1, 4, HIDDEN, VOCAB, CONTEXT, 10000.0)
TABLE = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=TELLS)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


class LastRow(torch.nn.Module):
    """A decoder without memory: what it says tells the position and the last row that it was given."""

    def forward(self, rows: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows[:, -1:], rows[:, -1:], rows[:, -1:, :2]], dim=-1) + position.float()


class Put(torch.nn.Module):
    state: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state.add_(x)
        return x * 2


class Get(Put):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.state + x


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> PartFiles:
    path = tmp_path_factory.mktemp("graph") / "vision.pte"
    lower.write(path, {"vision_encoder": Method(Doubled(), (torch.zeros(1, 3, 2, 2),))}, {}, lambda done: None)
    ports = ((TensorSpec(name, "float32", (1, 3, 2, 2)),) for name in ("pixel_values", "image_embeds"))
    return PartFiles("executorch", "fp32", ("vision", "projector"), (path,), *ports)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> PartFiles:
    path, longest = tmp_path_factory.mktemp("decoder") / "decoder.pte", CONTEXT - 1
    rows = Method(LastRow(), (torch.zeros(1, 3, HIDDEN), torch.tensor([0])), longest)
    ids = Method(TokenEmbedding(TABLE, None), (torch.zeros(1, 3, dtype=torch.int64),), longest)
    constants = {"get_max_context_len": CONTEXT}
    lower.write(path, {"text_decoder": rows, "token_embedding": ids}, constants, lambda done: None)
    return PartFiles("executorch", "fp32", ("decoder",), (path,), (), (), SPEC)


def damaged(part: PartFiles, folder: Path, content: bytes) -> PartFiles:
    (folder / "damaged.pte").write_bytes(content)
    return dataclasses.replace(part, files=(folder / "damaged.pte",))


def x(seed: int = 0) -> Array:
    found: Array = np.random.default_rng(seed).normal(size=(1, 3, 2, 2)).astype(np.float32)
    return found


def test_a_graph_runs_and_keeps_nothing(engine: str, graph: PartFiles) -> None:
    opened = open_part(graph, engine, OPTIONS)
    first = opened.run({"pixel_values": x(1)})["image_embeds"]  # type: ignore[union-attr]
    into = {"image_embeds": np.empty((1, 3, 2, 2), np.float32)}
    second = opened.run({"pixel_values": x(2)}, into)["image_embeds"]  # type: ignore[union-attr]
    np.testing.assert_array_equal(first, 2 * x(1))
    np.testing.assert_array_equal(second, 2 * x(2))
    assert second is into["image_embeds"]


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"x": x()}, "takes pixel_values, and was fed x"),
        ({"pixel_values": x()[0]}, r"the array is float32 \[3, 2, 2\]"),
        ({"pixel_values": x().astype(np.float64)}, r"pixel_values is float32 .*, and the array is float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(engine: str, graph: PartFiles, feeds: dict[str, Array], said: str) -> None:
    opened = open_part(graph, engine, OPTIONS)
    with pytest.raises(EngineError, match=said):
        opened.run(feeds)  # type: ignore[union-attr]
    transposed = x().transpose(0, 1, 3, 2)
    found = opened.run({"pixel_values": transposed})["image_embeds"]  # type: ignore[union-attr]
    np.testing.assert_array_equal(found, 2 * transposed)


def test_a_decoder_looks_tokens_up_and_counts(engine: str, decoder: PartFiles) -> None:
    opened = open_part(decoder, engine, OPTIONS)
    logits = opened.extend([Tokens((1, 2)), Tokens(()), Tokens((7,))])  # type: ignore[union-attr]
    np.testing.assert_array_equal(logits[:HIDDEN], TABLE[7].numpy())
    logits = opened.extend([Tokens((9,))])  # type: ignore[union-attr]
    np.testing.assert_allclose(logits[:HIDDEN], TABLE[9].numpy() + 3)
    opened.rewind(0)  # type: ignore[union-attr]
    logits = opened.extend([Tokens(tuple(range(CONTEXT)))])  # type: ignore[union-attr]
    np.testing.assert_allclose(logits[:HIDDEN], TABLE[7].numpy() + 7)  # in two pieces
    with pytest.raises(EngineError, match="cannot rewind to 9 from 8"):
        opened.rewind(9)  # type: ignore[union-attr]


@pytest.mark.parametrize("ids", [(VOCAB,), (0, -1), (1, 1 << 40)])
def test_a_token_outside_the_table_is_refused(engine: str, decoder: PartFiles, ids: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="a token id is outside the vocabulary of 10"):
        open_part(decoder, engine, OPTIONS).extend([Tokens(ids)])  # type: ignore[union-attr]


def test_threads_are_as_asked_for(engine: str, graph: PartFiles) -> None:
    for threads in (2, 1):
        open_part(graph, engine, OpenOptions(threads=threads, context=CONTEXT))
        assert TELLS[engine][0]() == threads


def test_another_number_of_threads_waits_for_the_bindings(graph: PartFiles) -> None:
    """Else what is open computes with a pool that is gone, and the process ends."""
    opened = open_part(graph, "executorch", OPTIONS)
    with pytest.raises(EngineError, match="has a program open with 1 threads, and cannot open another with 2"):
        open_part(graph, "executorch", OpenOptions(threads=2, context=CONTEXT))
    np.testing.assert_array_equal(opened.run({"pixel_values": x()})["image_embeds"], 2 * x())  # type: ignore[union-attr]
    del opened
    open_part(graph, "executorch", OpenOptions(threads=2, context=CONTEXT))


def test_methods_share_what_the_file_says_that_they_share(tmp_path: Path) -> None:
    """And two programs of one file share nothing."""
    one = (torch.zeros(1, 2),)
    methods = {"put": Method(Put(), one), "get": Method(Get(), one), "other": Method(Doubled(), one)}
    lower.write(tmp_path / "state.pte", methods, {}, lambda done: None)
    first, second = (edge_executorch.Program(tmp_path / "state.pte", list(methods), 1) for _ in range(2))
    value, nothing = np.array([[1, 10]], np.float32), np.zeros((1, 2), np.float32)
    for count in (1, 2, 3):
        first.run("put", value)
        np.testing.assert_array_equal(first.run("other", value)[0], 2 * value)
        np.testing.assert_array_equal(first.run("get", nothing)[0], count * value)
    np.testing.assert_array_equal(second.run("get", value)[0], value)


def test_programs_of_different_threads_live_side_by_side(graph: PartFiles, decoder: PartFiles) -> None:
    one = open_part(graph, "executorch_native", OPTIONS)
    two = open_part(decoder, "executorch_native", OpenOptions(threads=2, context=CONTEXT))
    for _ in range(3):
        np.testing.assert_array_equal(one.run({"pixel_values": x()})["image_embeds"], 2 * x())  # type: ignore[union-attr]
        two.rewind(0)  # type: ignore[union-attr]
        np.testing.assert_array_equal(two.extend([Tokens((7,))])[:HIDDEN], TABLE[7].numpy())  # type: ignore[union-attr]


def test_nothing_is_said_on_stderr(engine: str, graph: PartFiles) -> None:
    code = (
        "from pathlib import Path; from edge.types import OpenOptions, PartFiles, TensorSpec as T; import numpy\n"
        f"from runtimes import {engine} as engine\n"
        "ports = [(T(n, 'float32', (1, 3, 2, 2)),) for n in ('pixel_values', 'image_embeds')]\n"
        f"part = PartFiles('executorch', 'fp32', ('vision',), (Path({str(graph.files[0])!r}),), *ports)\n"
        "graph = engine.open(part, OpenOptions(threads=1, context=8))\n"
        "graph.run({'pixel_values': numpy.zeros((1, 3, 2, 2), numpy.float32)})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_file_that_is_cut_is_refused(engine: str, decoder: PartFiles, tmp_path: Path) -> None:
    content = decoder.files[0].read_bytes()
    for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999):
        with pytest.raises(BundleError, match=r"damaged\.pte"):
            open_part(damaged(decoder, tmp_path, content[: int(share * len(content))]), engine, OPTIONS)


def test_a_file_of_another_version_is_refused(engine: str, graph: PartFiles, tmp_path: Path) -> None:
    content = graph.files[0].read_bytes()
    with pytest.raises(BundleError, match="expected b'ET12' after the first four bytes"):
        open_part(damaged(graph, tmp_path, content[:4] + b"ET13" + content[8:]), engine, OPTIONS)


def test_a_missing_kernel_is_named(
    engine: str, graph: PartFiles, decoder: PartFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, operators, backends = TELLS[engine][1]
    known = getattr(library, operators)()
    monkeypatch.setattr(library, backends, lambda: ["QnnBackend"])
    with pytest.raises(EngineError, match=r"vision_encoder of vision\.pte needs XnnpackBackend, which .*executorch"):
        open_part(graph, engine, OPTIONS)
    monkeypatch.undo()
    monkeypatch.setattr(library, operators, lambda: [name for name in known if "embedding" not in name])
    with pytest.raises(EngineError, match=r"token_embedding of decoder\.pte needs aten::embedding\.out, which "):
        open_part(decoder, engine, OPTIONS)


DAMAGE = """
import contextlib, pickle, sys
from pathlib import Path
import numpy
from hypothesis import given, settings, strategies as st
from edge.engines import open_part
from edge.errors import EdgeError
from edge.types import OpenOptions, Tokens
engine, part = sys.argv[1], pickle.loads(bytes.fromhex(sys.argv[2]))
content = part.files[0].read_bytes()
head = int.from_bytes(content[16:24], "little")
damaged = Path("damaged.pte")

@settings(deadline=None, max_examples=200, database=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, head - 1), st.integers(0, 255)), min_size=1, max_size=5))
def opened(changes):
    changed = bytearray(content)
    for at, value in changes:
        changed[at] = value
    damaged.unlink(missing_ok=True)  # the one before is mapped
    damaged.write_bytes(changed)
    with contextlib.suppress(EdgeError):
        found = open_part(part, engine, OpenOptions(threads=1, context=part.decoder.context if part.decoder else 1))
        if part.decoder:
            found.extend([Tokens((1, 2, 3))])
        else:
            found.run({spec.name: numpy.zeros(spec.shape, spec.dtype) for spec in part.inputs})

part = type(part)(**{**vars(part), "files": (damaged,)})
opened()
"""


@pytest.mark.parametrize("half", ["graph", "decoder"])
def test_a_head_with_any_bytes_ends_no_process(half: str, graph: PartFiles, decoder: PartFiles, tmp_path: Path) -> None:
    """What our reader lets through, native code runs or refuses."""
    part = pickle.dumps(graph if half == "graph" else decoder).hex()
    arguments = [sys.executable, "-c", DAMAGE, "executorch_native", part]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("change", ["operator", "argument", "buffer", "result", "given"])
def test_what_an_instruction_refers_to_is_bounded(
    engine: str, change: str, graph: PartFiles, decoder: PartFiles, tmp_path: Path
) -> None:
    """The library takes these numbers as they are, and goes where they point."""
    said = {"operator": "an instruction refers to that is not there", "buffer": "a tensor that is nowhere"}
    file = deserialize_pte_binary(decoder.files[0].read_bytes())
    plan = next(plan for plan in file.program.execution_plan if plan.name == "token_embedding")
    call = plan.chains[0].instructions[0].instr_args
    if change == "operator":
        call.op_index = 7
    elif change == "argument":
        call.args[0] = len(plan.values)
    elif change == "result":  # a constant, which is mapped for reading
        call.args[-2] = call.args[0]
        said["result"] = "an operator whose result has no memory of its own"
    elif change == "given":
        call.args[-1] = plan.inputs[0]
        said["given"] = "an operator whose result has no memory of its own"
    else:
        table = next(v.val for v in plan.values if isinstance(v.val, Tensor) and v.val.data_buffer_idx)
        table.data_buffer_idx = 0
    content = bytes(serialize_pte_binary(file, extract_delegate_segments=True))
    with pytest.raises(BundleError, match=said.get(change, said["operator"])):
        open_part(damaged(decoder, tmp_path, content), engine, OPTIONS)


def test_keys_are_not_overwritten_by_the_result(tmp_path: Path) -> None:
    """Which has the shape of the queries: what was looked at before would not hold then."""
    file = deserialize_pte_binary((FOLDER / "odd.pte").read_bytes())
    (plan,) = file.program.execution_plan
    number = next(at for at, operator in enumerate(plan.operators) if operator.name == "llama::custom_sdpa")
    calls = (step.instr_args for step in plan.chains[0].instructions)
    call = next(call for call in calls if getattr(call, "op_index", None) == number)
    call.args[-2:] = [call.args[1]] * 2
    path = tmp_path / "odd.pte"
    path.write_bytes(bytes(serialize_pte_binary(file, extract_delegate_segments=True)))
    assert executorch.read(path).methods
    with pytest.raises(Failure, match="custom_sdpa whose result is its keys or values"):
        Program(path, ["attention"], 1).run("attention", np.zeros((1, 40, 10, 5), np.float32), np.array([0]))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.pte")), ids=lambda path: path.stem)
def test_a_program_without_weights_is_sound(path: Path) -> None:
    assert set(executorch.read(path).methods) == {"attention"}


SHORT = """
import resource, sys, numpy
from edge_executorch import Failure, Program
rows = numpy.random.default_rng(0).normal(size=(1, 1500, 256)).astype("float32")
program = Program(sys.argv[1], ["wide"], 1)
program.run("wide", rows[:, :3])
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), resource.RLIM_INFINITY))
try:
    program.run("wide", rows)
    print("it had enough")
except (Failure, MemoryError):
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (expected,) = Program(sys.argv[1], ["wide"], 1).run("wide", rows)
    print([float(abs(program.run("wide", rows)[0] - expected).max()) for again in range(2)])
"""


class Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        seeded = torch.Generator().manual_seed(3)
        weights = (torch.randn(shape, generator=seeded) for shape in ((4096, 256), (256, 4096)))
        self.up, self.down = (Product(store("", weight, None, "8da4w", None), ()) for weight in weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.down(torch.sigmoid(self.up(x))))


def test_what_ran_out_of_memory_is_right_again_with_it(tmp_path: Path) -> None:
    """XNNPACK had prepared a half, and took it for the whole at the next call of the same shape."""
    lower.write(tmp_path / "wide.pte", {"wide": Method(Wide(), (torch.zeros(1, 8, 256),), 2000)}, {}, lambda done: None)
    arguments = [sys.executable, "-c", SHORT, str(tmp_path / "wide.pte")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0.0, 0.0]\n", "")


FORKED = """
import os, sys, threading, time, edge_executorch
program = edge_executorch.Program(sys.argv[1], ["attention"], 2)
held = threading.Event()
def hold():
    with edge_executorch._ONE_AT_A_TIME:
        held.set()
        time.sleep(1)
threading.Thread(target=hold).start()
held.wait()
if not (child := os.fork()):
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_ends_while_a_thread_of_its_parent_computes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(FOLDER / "one.pte")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_what_is_closed_while_it_runs_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal's handler does, which comes between the library's return and the copy of its result."""
    program, copied = Program(FOLDER / "one.pte", ["attention"], 1), edge_executorch._copied

    def interrupted(array: object) -> Array:
        program.close()
        return copied(array)  # type: ignore[arg-type]

    monkeypatch.setattr(edge_executorch, "_copied", interrupted)
    (made,) = program.run("attention", np.ones((1, 2, 3, 1), np.float32), np.array([0]))
    np.testing.assert_array_equal(made, np.ones((1, 2, 1, 1)))
    with pytest.raises(Failure, match="closed"):
        program.run("attention", np.ones((1, 2, 3, 1), np.float32), np.array([0]))


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (MemoryError("no memory for an ExecuTorch program"), "no memory", "edge fit"),
        (Failure("xnn_status_out_of_memory"), "out_of_memory", "edge fit"),
        (OSError("libexecutorch.so: cannot open"), "its library does not load: libexecutorch.so", "glibc 2.32"),
        (Failure("it is no program"), "it is no program", "edge verify /"),
    ],
)
def test_each_failure_has_its_own_hint(
    error: Exception, said: str, hint: str, graph: PartFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, packed: int | None = None) -> None:
        raise error

    monkeypatch.setattr(edge_executorch, "Program", fail)
    with pytest.raises(EngineError, match=said) as caught:
        open_part(graph, "executorch_native", OPTIONS)
    assert hint in str(caught.value.hint)


ENDED = """
import sys, numpy
from edge_executorch import Failure, Program
program = Program(sys.argv[1], ["token_embedding"], 1)
print(program.run("token_embedding", numpy.array([[0, 9]]))[0][0, :, 0])
for ids in ([[0, 10]], [[0, 9]]):
    try:
        program.run("token_embedding", numpy.array(ids))
    except Failure as failure:
        print(failure)
"""


def test_what_would_end_the_process_is_an_error(tmp_path: Path) -> None:
    """The library's kernel of quantised tables does so; nothing can be computed with it afterwards."""
    table = torch.arange(VOCAB * HIDDEN).view(VOCAB, HIDDEN).to(torch.int8)
    ids = Method(TokenEmbedding(table, torch.ones(VOCAB, 1)), (torch.zeros(1, 3, dtype=torch.int64),), CONTEXT)
    lower.write(tmp_path / "table.pte", {"token_embedding": ids}, {}, lambda done: None)
    arguments = [sys.executable, "-c", ENDED, str(tmp_path / "table.pte")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rows, failed, after = done.stdout.splitlines()
    assert rows == "[ 0. 36.]"
    assert "index 10 must be in range [0, 10)" in failed
    assert after == "it failed in a way that it does not recover from; only a new process can use it"


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_head_with_any_bytes_is_read_or_refused(decoder: PartFiles, tmp_path: Path, data: st.DataObject) -> None:
    """Never another error, and never without an end."""
    content = bytearray(decoder.files[0].read_bytes())
    head = int.from_bytes(content[16:24], "little")
    for at in data.draw(st.lists(st.integers(0, head - 1), min_size=1, max_size=6)):
        content[at] = data.draw(st.integers(0, 255))
    (tmp_path / "wild.pte").write_bytes(content)
    with contextlib.suppress(BundleError):
        found = executorch.read(tmp_path / "wild.pte")
        assert all(method.name == name for name, method in found.methods.items())
