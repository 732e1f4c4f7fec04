from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import REPOSITORY
from gguf_fakes import SPEC, decoder_bytes, gathered, part_of, reference
from onnx import TensorProto, helper

from edge.devices import host
from edge.devices.host import ISA, Machine
from edge.engines import installed_engines, open_part
from edge.errors import BundleError, ContextError, EngineError, ProviderError
from edge.formats import gguf, llamacpp_kernels
from edge.types import Decoder, Embeddings, OpenOptions, PartFiles, Segment, Tokens
from runtimes import llamacpp

BEFORE, AFTER = Tokens((1, 5, 9, 40, 41)), Tokens((7, 8, 95))
ROWS = Embeddings(np.random.default_rng(1).normal(size=(4, SPEC.hidden)).astype(np.float32), key="picture")
PROMPT: list[Segment] = [BEFORE, ROWS, AFTER]


@pytest.fixture
def part(tmp_path: Path) -> PartFiles:
    return part_of(tmp_path / "decoder.gguf")


def opened(part: PartFiles, **options: Any) -> Decoder:
    context = part.decoder.context if part.decoder else 1
    found = open_part(part, "llamacpp", OpenOptions(**{"threads": 1, "context": context, **options}))
    assert isinstance(found, Decoder)
    return found


def close(found: Any, expected: Any, error: float = 4e-2) -> None:
    """The library keeps keys and values in float16; logits are of the order of 5."""
    np.testing.assert_allclose(found, expected, atol=error, rtol=0)


# what it computes


def test_it_computes_the_model(part: PartFiles) -> None:
    decoder = opened(part)
    logits = decoder.extend(PROMPT)
    expected = reference(PROMPT)
    assert logits.dtype == np.float32
    assert logits.shape == (SPEC.vocab,)
    assert np.abs(expected).max() > 3
    close(logits, expected)
    assert decoder.position == 12


def test_tokens_are_their_rows(part: PartFiles) -> None:
    by_row = opened(part).extend([gathered(BEFORE), ROWS, gathered(AFTER)])
    np.testing.assert_allclose(opened(part).extend(PROMPT), by_row, atol=1e-5)


def test_a_prompt_is_one_pass(part: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, decode, passes = opened(part), llamacpp.lib.llama_decode, []

    def counts(context: Any, batch: Any) -> int:
        passes.append(batch.n_tokens)
        return decode(context, batch)  # type: ignore[no-any-return]

    monkeypatch.setattr(llamacpp.lib, "llama_decode", counts)
    decoder.extend(PROMPT)
    decoder.extend([AFTER, BEFORE])
    decoder.extend([Tokens((5,))])
    assert passes == [12, 8, 1]


def test_cached_is_uncached(part: PartFiles) -> None:
    decoder = opened(part)
    logits, told = decoder.extend(PROMPT), []
    for _ in range(12):
        close(logits, opened(part).extend([*PROMPT, Tokens(tuple(told))]))
        told.append(int(logits.argmax()))
        logits = decoder.extend([Tokens((told[-1],))])
    assert len(set(told)) > 2


def test_split_is_whole(part: PartFiles) -> None:
    split = opened(part)
    for segment in PROMPT:
        logits = split.extend([segment])
    close(logits, opened(part).extend(PROMPT))
    one = opened(part)
    for token in (*BEFORE.ids, *AFTER.ids):
        logits = one.extend([Tokens((token,))])
    close(logits, opened(part).extend([Tokens(()), BEFORE, AFTER, Tokens(())]))


@pytest.mark.parametrize(("asked", "given"), [(None, -1), (0, 0), (3, 3)])
def test_layers_on_a_card(part: PartFiles, monkeypatch: pytest.MonkeyPatch, asked: int | None, given: int) -> None:
    """As many as the plan says; all of them where it says nothing, as with Metal."""
    load, told = llamacpp.lib.llama_model_load_from_file, []

    def loads(path: bytes, settings: Any) -> Any:
        told.append(settings.n_gpu_layers)
        return load(path, settings)

    monkeypatch.setattr(llamacpp.lib, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(llamacpp.lib, "llama_model_load_from_file", loads)
    opened(part, gpu_layers=asked).extend(PROMPT)
    assert told == [given]


def test_layers_that_the_library_did_not_take(part: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderError, match="finds no card") as caught:
        opened(part, gpu_layers=3)
    assert "GGML_CUDA=ON" in str(caught.value.hint)
    monkeypatch.setattr(llamacpp.lib, "llama_supports_gpu_offload", lambda: True)
    load = llamacpp.lib.llama_model_load_from_file

    def loads(path: bytes, settings: Any) -> Any:
        llamacpp._record(1, b"load_tensors: offloaded 1/3 layers to GPU\n", None)
        return load(path, settings)

    monkeypatch.setattr(llamacpp.lib, "llama_model_load_from_file", loads)
    with pytest.raises(ProviderError, match="put 1 layers of 3 on the card") as caught:
        opened(part, gpu_layers=3)
    assert caught.value.hint == "--gpu-layers 1"
    opened(part, gpu_layers=1)


def test_a_card_that_fails_is_told_apart(part: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp.lib, "llama_supports_gpu_offload", lambda: True)
    there, here = opened(part, gpu_layers=3), opened(part)
    monkeypatch.setattr(llamacpp.lib, "llama_decode", lambda context, batch: -3)
    with pytest.raises(ProviderError, match=r"the card failed: llama\.cpp failed at position 0"):
        there.extend(PROMPT)
    with pytest.raises(EngineError) as caught:
        here.extend(PROMPT)
    assert not isinstance(caught.value, ProviderError)


@pytest.mark.parametrize("flash", [False, True])
def test_flash_attention_is_the_same_model(part: PartFiles, flash: bool) -> None:
    close(opened(part, flash=flash).extend(PROMPT), opened(part).extend(PROMPT))


def test_whether_a_build_has_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "was built without it: CMAKE_ARGS='-DGGML_NATIVE=ON -DGGML_CUDA=ON' pip" in llamacpp.providers()["cuda"]
    (tmp_path / "libggml-cuda.so").touch()
    monkeypatch.setattr(llamacpp.lib, "_base_path", tmp_path)
    assert llamacpp.providers() == {"cuda": ""}


def test_logits_stay_as_they_were(part: PartFiles) -> None:
    decoder = opened(part)
    first = decoder.extend(PROMPT)
    kept = first.copy()
    decoder.extend([AFTER])
    np.testing.assert_array_equal(first, kept)


def test_rewind(part: PartFiles) -> None:
    decoder = opened(part)
    first = decoder.extend(PROMPT)
    decoder.extend([Tokens((3, 4, 5))])
    decoder.rewind(9)
    assert decoder.position == 9
    close(decoder.extend([AFTER]), first)
    decoder.rewind(0)
    close(decoder.extend([AFTER]), reference([AFTER]))
    for position in (-1, 4):
        with pytest.raises(EngineError, match=f"cannot rewind to {position} from 3"):
            decoder.rewind(position)


def test_memory_grows_with_what_it_holds(part: PartFiles) -> None:
    text = Tokens(tuple(i % SPEC.vocab for i in range(llamacpp.STEP - 3)))
    decoder, word = opened(part), Tokens((11,))
    decoder.extend([text])
    for _ in range(6):  # across the first length
        logits = decoder.extend([word])
    close(logits, reference([text, *[word] * 6]))
    decoder.rewind(2)
    close(decoder.extend([AFTER]), reference([Tokens(text.ids[:2]), AFTER]))


def test_a_prompt_longer_than_a_batch(part: PartFiles) -> None:
    rows = Embeddings(np.random.default_rng(2).normal(size=(1100, SPEC.hidden)).astype(np.float32), key="long")
    close(opened(part).extend([BEFORE, rows, AFTER]), reference([BEFORE, rows, AFTER]))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(part: PartFiles, threads: int) -> None:
    decoder = opened(part, threads=threads)
    close(decoder.extend(PROMPT), reference(PROMPT))
    assert isinstance(decoder, llamacpp.LlamaCppDecoder)
    native = decoder._native.pointer
    found = llamacpp.lib.llama_n_threads(native), llamacpp.lib.llama_n_threads_batch(native)
    assert found == ((threads, threads) if threads else (found[0], found[0]))


def test_a_smaller_cache(part: PartFiles) -> None:
    spec = replace(SPEC, heads=2, kv_heads=1, head_dim=32)  # blocks of 32
    part = part_of(part.files[0], spec)
    close(opened(part, cache="q8_0").extend(PROMPT), reference(PROMPT, spec), 0.3)
    close(opened(part).extend(PROMPT), reference(PROMPT, spec))


# snapshots


@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_a_snapshot_goes_on_in_another_decoder(part: PartFiles, cache: str) -> None:
    part = part_of(part.files[0], replace(SPEC, heads=2, kv_heads=1, head_dim=32))
    long = Tokens(tuple(i % SPEC.vocab for i in range(llamacpp.STEP + 3)))
    for first in ([BEFORE, ROWS], [long, ROWS]):  # in the first memory, and in a longer one
        decoder, other = opened(part, cache=cache), opened(part, cache=cache)
        decoder.extend(first)
        kept = decoder.snapshot()
        item = {"f16": 2, "q8_0": 34 / 32}[cache]
        assert 0 <= kept.nbytes - 2 * 2 * 32 * item * decoder.position < 100 + 12 * decoder.position
        other.extend([AFTER, AFTER])
        other.restore(kept)
        assert other.position == decoder.position
        np.testing.assert_array_equal(other.extend([AFTER]), decoder.extend([AFTER]))
        other.rewind(5)
        decoder.rewind(5)
        np.testing.assert_array_equal(other.extend([AFTER]), decoder.extend([AFTER]))


def test_a_snapshot_after_a_rewind_holds_what_is_left(part: PartFiles) -> None:
    decoder, other = opened(part), opened(part)
    decoder.extend([BEFORE, Tokens((3, 4, 5))])
    decoder.rewind(len(BEFORE))
    decoder.extend([ROWS])
    other.restore(decoder.snapshot())
    close(other.extend([AFTER]), reference(PROMPT))


def test_a_snapshot_that_is_not_the_librarys_never_reaches_it(part: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = opened(part)
    first = decoder.extend(PROMPT)
    kept = decoder.snapshot()
    damaged = kept.arrays["state"].copy()
    damaged[16] = 200  # a position
    monkeypatch.setattr(llamacpp.lib, "llama_state_seq_set_data", None)
    with pytest.raises(EngineError, match=r"no state of llama\.cpp for 12 positions"):
        decoder.restore(replace(kept, arrays={"state": damaged}))
    assert decoder.position == 0
    with pytest.raises(EngineError, match=r"'llama-cpp-python 1 f16', for a decoder of 'llama-cpp-python .* f16'"):
        decoder.restore(replace(kept, layout="llama-cpp-python 1 f16"))
    np.testing.assert_array_equal(decoder.extend(PROMPT), first)


def test_a_snapshot_that_the_library_refuses_leaves_nothing(part: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = opened(part)
    first = decoder.extend(PROMPT)
    kept = decoder.snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(llamacpp.lib, "llama_state_seq_set_data", lambda *_: 0)
        with pytest.raises(EngineError, match="does not take positions that were kept"):
            decoder.restore(kept)
    assert decoder.position == 0
    np.testing.assert_array_equal(decoder.extend(PROMPT), first)


# what does not fit


def test_a_full_context_leaves_what_was_there(part: PartFiles) -> None:
    decoder = opened(part, context=14)
    decoder.extend([BEFORE, ROWS])
    with pytest.raises(ContextError, match="needs 17 positions, and the context holds 14"):
        decoder.extend([AFTER, BEFORE])
    assert decoder.position == 9
    close(decoder.extend([AFTER]), reference(PROMPT))
    decoder.extend([Tokens((1, 2))])
    with pytest.raises(ContextError, match="needs 15"):
        decoder.extend([Tokens((1,))])
    with pytest.raises(ContextError, match="holds 1200"):
        opened(part).extend([Tokens((1,) * 1201)])


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (Tokens((5, SPEC.vocab)), "outside the vocabulary of 96: 5 to 96 were given"),
        (Tokens((-1,)), "outside the vocabulary of 96: -1 to"),
        (Tokens((1 << 40,)), "outside the vocabulary of 96"),
        (Embeddings(np.zeros((4, 63), np.float32), "narrow"), r"embeddings of \(4, 63\), for a decoder of width 64"),
        (Embeddings(np.zeros(4, np.float32), "flat"), r"embeddings of \(4,\)"),
    ],
)
def test_inputs_that_do_not_fit(part: PartFiles, segment: Segment, message: str) -> None:
    decoder = opened(part)
    decoder.extend([BEFORE, ROWS])
    with pytest.raises(EngineError, match=message):
        decoder.extend([AFTER, segment])
    assert decoder.position == 9
    close(decoder.extend([AFTER]), reference(PROMPT))


def test_nothing(part: PartFiles) -> None:
    with pytest.raises(EngineError, match="extended by nothing"):
        opened(part).extend([Tokens(())])


@pytest.mark.parametrize("failure", [-3, KeyboardInterrupt])
def test_a_failure_inside_leaves_what_was_there(
    part: PartFiles, monkeypatch: pytest.MonkeyPatch, failure: int | type[BaseException]
) -> None:
    decoder = opened(part)
    decoder.extend([BEFORE])
    decode, calls = llamacpp.lib.llama_decode, []

    def fails_afterwards(context: Any, batch: Any) -> int:
        calls.append(batch.n_tokens)
        failed = decode(context, batch)
        if len(calls) > 1:
            return failed
        if isinstance(failure, type):
            raise failure
        return failure

    monkeypatch.setattr(llamacpp.lib, "llama_decode", fails_afterwards)
    with pytest.raises((EngineError, KeyboardInterrupt)) as caught:
        decoder.extend([ROWS, AFTER])
    assert str(caught.value) == ("" if isinstance(failure, type) else "llama.cpp failed at position 5 (-3)")
    assert decoder.position == 5
    close(decoder.extend([ROWS, AFTER]), reference(PROMPT))


def test_no_room_to_grow_leaves_what_was_there(part: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = opened(part)
    decoder.extend([BEFORE, ROWS])
    with monkeypatch.context() as patch:
        patch.setattr(llamacpp.lib, "llama_init_from_model", lambda model, settings: None)
        with pytest.raises(EngineError, match="cannot make room for 1024 positions") as caught:
            decoder.extend([Tokens((1,) * llamacpp.STEP)])
    assert "context" in str(caught.value.hint)
    assert decoder.position == 9
    close(decoder.extend([AFTER]), reference(PROMPT))


def test_memory_is_given_back(part: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    real = {name: getattr(llamacpp.lib, name) for name in ("llama_free", "llama_model_free")}
    for name in real:

        def free(pointer: int, name: str = name) -> None:
            freed.append(name)
            real[name](pointer)

        monkeypatch.setattr(llamacpp.lib, name, free)
    decoder = opened(part)
    decoder.extend([Tokens((1,) * (llamacpp.STEP + 1))])
    assert freed == ["llama_free"], "the shorter memory"
    del decoder
    assert freed == ["llama_free", "llama_free", "llama_model_free"]


# beside others


def test_beside_onnxruntime(part: PartFiles) -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in "xy"]
    graph = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]), ir_version=10)
    graph.opset_import[0].version = 21
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    decoder, other = opened(part), opened(part)
    for _ in range(3):
        np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ x, rtol=1e-4, atol=1e-4)
        decoder.rewind(0)
        close(decoder.extend(PROMPT), reference(PROMPT))
        other.extend([AFTER])
    assert other.position == 9


def test_the_terminal_is_silent(part: PartFiles, capfd: pytest.CaptureFixture[str]) -> None:
    opened(part).extend(PROMPT)
    with pytest.raises(EngineError):
        opened(part_of(part.files[0], content=decoder_bytes(settings={"tokenizer.ggml.pre": 3})))
    assert capfd.readouterr() == ("", "")


def test_the_package_itself_can_still_be_imported() -> None:
    code = "import runtimes.llamacpp as m, llama_cpp; print(llama_cpp.Llama.__name__, llama_cpp.llama_cpp is m.lib)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "Llama True\n"


def test_what_the_listing_says() -> None:
    (info,) = (info for info in installed_engines() if info.name == "llamacpp")
    assert (info.formats, info.installed, info.version) == (("gguf",), True, llamacpp.version())
    assert set(llamacpp.features()) <= set(ISA)
    assert any(llamacpp.features().values())


# kernels


def test_what_computes_is_read_off_its_own_report(monkeypatch: pytest.MonkeyPatch) -> None:
    report = b"MTL : EMBED_LIBRARY = 1 | CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | MATMUL_INT8 = 0 | REPACK = 1 | "
    monkeypatch.setattr(llamacpp.lib, "llama_print_system_info", lambda: report)
    assert llamacpp.kernels() == ("neon", "dotprod", "metal")


def test_what_computes_is_what_this_processor_has() -> None:
    assert set(llamacpp.kernels()) <= set(host.inspect().isa)
    assert llamacpp.kernels()[0] in ("avx2", "neon")


def test_a_build_with_one_set_of_kernels_cannot_be_held_to_less(part: PartFiles) -> None:
    with pytest.raises(EngineError, match=r"llama\.cpp's kernels cannot be held to mmx: ") as caught:
        opened(part, isa=("mmx",))
    assert caught.value.hint == llamacpp.BUILD_ALL
    assert len(opened(part, isa=host.inspect().isa).extend(PROMPT)) == SPEC.vocab


class Kernels:
    """A library that brings its kernels as several others, and loads those that it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sets = {"wide": b"NEON = 1 | DOTPROD = 1", "middle": b"NEON = 1 | FP16_VA = 1", "low": b"NEON = 1"}
        self.loaded: list[str] = []
        self.asked: list[str] = []
        names = dict(enumerate(self.sets, 1))

        def load(path: bytes) -> int | None:
            self.asked.append(path.decode())
            self.loaded.append(path.decode())
            return next(number for number, name in names.items() if name == path.decode())

        self.ggml_backend_reg_count = Function(lambda: len(self.loaded))
        self.ggml_backend_load = Function(load)
        self.ggml_backend_unload = Function(lambda number: self.loaded.remove(names[number.value]))
        self.ggml_backend_load_all_from_path = Function(lambda path: load(b"wide"))
        said = {"llama_log_set": lambda *given: None, "llama_print_system_info": self.report}
        monkeypatch.setattr(llamacpp, "lib", SimpleNamespace(_lib=self, _base_path="", **said))
        monkeypatch.setattr(llamacpp_kernels, "variants", lambda folder: [Path(name) for name in self.sets])
        monkeypatch.setattr(llamacpp.sys, "platform", "linux")

    def report(self) -> bytes:
        return b"CPU : " + self.sets[self.loaded[0]] + b" | " if self.loaded else b""


class Function:
    """Takes attributes, as what ctypes hands out."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __call__(self, *given: Any) -> Any:
        return self.call(*given)


def test_of_several_sets_of_kernels_the_library_takes_its_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = Kernels(monkeypatch)
    assert llamacpp.kernels() == ("neon", "dotprod")
    assert llamacpp.kernels() == ("neon", "dotprod")
    assert sets.asked == ["wide"], "once"
    llamacpp._load_kernels(("neon", "dotprod", "fp16"))
    with pytest.raises(EngineError, match="another one is loaded"):
        llamacpp._load_kernels(("neon",))


@pytest.mark.parametrize(
    ("isa", "loaded"),
    [(("neon",), "low"), (("neon", "fp16"), "middle"), (("neon", "dotprod"), "wide")],
)
def test_of_several_sets_of_kernels_the_widest_that_may_be_used(
    isa: tuple[str, ...], loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = Kernels(monkeypatch)
    llamacpp._load_kernels(isa)
    assert sets.loaded == [loaded]


def test_no_set_of_kernels_is_narrow_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = Kernels(monkeypatch)
    with pytest.raises(EngineError, match=r"this build of llama\.cpp has no kernels for sve alone"):
        llamacpp._load_kernels(("sve",))
    assert (sets.asked, sets.loaded) == (["wide", "middle", "low"], [])


# files


def test_a_processor_that_is_not_this_one(part: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "inspect", lambda: Machine("old", 1 << 30, 1, ()))
    monkeypatch.setattr(llamacpp.sys, "platform", "linux")
    with pytest.raises(EngineError, match=r"llama\.cpp was built for a processor with .*(neon|avx2)") as caught:
        opened(part)
    assert caught.value.hint == llamacpp.BUILD


def test_a_part_that_sees(part: PartFiles) -> None:
    with pytest.raises(EngineError, match=r"what llama\.cpp makes of an image") as caught:
        opened(replace(part, covers=("vision", "projector"), decoder=None))
    assert "--gguf-only" in str(caught.value.hint)


def test_a_build_without_what_the_table_needs(part: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf.read(part.files[0])
    table = replace(file.tensors["token_embd.weight"], kind="Q4_K")

    def missing(name: str, folder: Path) -> Any:
        raise FileNotFoundError(f"no {name}")

    monkeypatch.setattr(llamacpp.lib, "load_shared_library", missing)
    with pytest.raises(EngineError, match=r"cannot read Q4_K: no ggml-base") as caught:
        llamacpp._table(replace(file, tensors={"token_embd.weight": table}))
    assert caught.value.hint == llamacpp.BUILD


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", BundleError, "cannot read decoder.gguf"),
        (b"\x08\x07" * 50, BundleError, "no sound GGUF file"),
        (decoder_bytes()[:30_000], BundleError, "no sound GGUF file"),
        (decoder_bytes(replace(SPEC, layers=1)), BundleError, "block_count is 1, expected 2"),
        (decoder_bytes(settings={"llama.feed_forward_length": 95}), EngineError, "cannot open .* has wrong shape"),
        (
            decoder_bytes(settings={"general.architecture": "unheard-of"}),
            BundleError,
            "its architecture is 'unheard-of'",
        ),
    ],
)
def test_a_file_that_is_no_such_decoder(tmp_path: Path, content: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        opened(part_of(tmp_path / "decoder.gguf", content=content))


MUTATE = """
import json, sys
from pathlib import Path
import numpy as np
from gguf_fakes import SPEC, decoder_bytes, part_of
from edge.errors import EdgeError
from edge.types import OpenOptions, Tokens
from runtimes import llamacpp

random, whole = np.random.default_rng(0), decoder_bytes()
end = whole.index(b"output_norm.weight") + 400
found = {"answers": 0}
for _ in range(400):
    content = bytearray(whole)
    for at in random.integers(0, end, random.integers(1, 4)):
        content[at] = random.integers(0, 256)
    try:
        part = part_of(Path(sys.argv[1], "decoder.gguf"), content=bytes(content))
        llamacpp.open(part, OpenOptions(threads=1, context=64)).extend([Tokens((1, 2, 3))])
        found["answers"] += 1
    except EdgeError as error:
        found[type(error).__name__] = found.get(type(error).__name__, 0) + 1
print(json.dumps(found))
"""


def test_no_damage_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MUTATE, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=REPOSITORY / "tests", capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["answers"] > 0
    assert found["BundleError"] > 100
