"""The reader of GGUF heads: it says what a file holds, or refuses it with BundleError, whatever the bytes are."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_fakes as fakes
import numpy as np
import pytest
from gguf_fakes import F32, Q4_0, SPEC, decoder_bytes, gguf_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import BundleError
from edge.formats import gguf
from edge.formats.gguf import GGUF, GGUFArray, GGUFTensor
from edge.formats.gguf_decoder import check_decoder

WHOLE = decoder_bytes()
HEAD = WHOLE.index(b"output_norm.weight") + 4096
SETTINGS = {"general.architecture": "a", "a.x": 7, "a.y": 0.5, "a.z": True, "a.words": ["one", "two"], "a.n": [1.0] * 2}
LISTS = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores"}
WILD = (b"\xff" * 8, bytes(8), b"\0\0\0\0\0\0\0\x80")


def read(folder: Path, content: bytes) -> GGUF:
    path = folder / "m.gguf"
    path.write_bytes(content)
    return gguf.read(path)


def test_what_a_file_holds(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = {"one": (weight.shape, F32, weight.tobytes()), "two": ((4, 64), Q4_0, bytes(4 * 2 * 18))}
    for version in (2, 3):
        content = gguf_bytes(SETTINGS, tensors, version=version)
        found = read(tmp_path, content)
        assert (found.version, found.architecture) == (version, "a")
        assert found.settings == {**SETTINGS, "a.words": GGUFArray(8, 2), "a.n": GGUFArray(6, 2)}
        one, two = found.tensors["one"], found.tensors["two"]
        assert (one.shape, one.kind, one.bytes, one.blocks) == ((3, 2), "F32", 24, False)
        assert (two.shape, two.kind, two.bytes, two.blocks) == ((64, 4), "Q4_0", 144, True)
        assert content[one.offset : one.offset + one.bytes] == weight.tobytes()
        assert two.offset == one.offset + 32


def test_lists_are_read_where_that_is_asked(tmp_path: Path) -> None:
    lists = {"a.words": ["one", "zwölf", ""], "a.n": [1.0, 0.5], "a.i": [-1, 23]}
    path = tmp_path / "m.gguf"
    path.write_bytes(content := gguf_bytes(SETTINGS | lists, {}))
    found = gguf.read(path, ("a.words", "a.i", "a.x", "a.none"))
    assert found.settings["a.words"] == GGUFArray(8, 3, ("one", "zwölf", ""))
    assert found.settings["a.i"] == GGUFArray(5, 2, (-1, 23))
    assert found.settings["a.n"] == GGUFArray(6, 2)
    assert found.settings["a.x"] == 7
    for key, place in found.places.items():
        assert content[place] == entry(key, fakes.setting((SETTINGS | lists)[key]))
    assert found.data == len(content)


def test_text_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "_LONGEST_TEXT", 64)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(SETTINGS | {"a.s": "x" * 64, "a.words": ["x" * 30] * 3}, {}))
    assert gguf.read(path).settings["a.s"] == "x" * 64
    with pytest.raises(BundleError, match=r"a\.words holds more than 64 bytes of text"):
        gguf.read(path, ["a.words"])
    path.write_bytes(gguf_bytes(SETTINGS | {"a.s": "x" * 65}, {}))
    with pytest.raises(BundleError, match=r"a\.s is 65 bytes of text"):
        gguf.read(path)


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 8, 23, 24, 60, 500, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_file_that_is_cut(tmp_path: Path, cut: int) -> None:
    assert read(tmp_path, WHOLE).tensors["output.weight"].shape == (SPEC.hidden, SPEC.vocab)
    with pytest.raises(BundleError, match=r"m\.gguf"):
        read(tmp_path, WHOLE[:cut])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read none\.gguf"):
        gguf.read(tmp_path / "none.gguf")
    with pytest.raises(BundleError, match="cannot read"):
        gguf.read(tmp_path)


def head(version: int = 3, tensors: int = 0, count: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + rest + bytes(64)


def entry(key: str, value: bytes) -> bytes:
    return fakes.text(key) + value


NAMED = entry("general.architecture", fakes.setting("a"))


def tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = F32, offset: int = 0) -> bytes:
    return fakes.text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"GGML" + bytes(60), "it begins with b'GGML'"),
        (head(version=1), "version 1"),
        (head(version=3 << 24), "version 50331648"),
        (head(tensors=1 << 40), "1099511627776 tensors"),
        (head(count=2**64 - 1), "18446744073709551615 settings"),
        (head(), "its architecture is None"),
        (head(count=1, rest=entry("general.architecture", fakes.setting(5))), "its architecture is 5"),
        (head(count=1, rest=entry("general.architecture", fakes.setting("../x"))), r"its architecture is '\.\./x'"),
        (head(count=2, rest=NAMED * 2), "'general.architecture' is set twice"),
        (head(count=1, rest=entry("k", struct.pack("<I", 13))), "'k' is of type 13"),
        (head(count=1, rest=entry("k", struct.pack("<IIQ", 9, 9, 1))), "'k' is of type 9"),
        (head(count=1, rest=entry("k", struct.pack("<IIQ", 9, 4, 1 << 30))), "1073741824 entries of 'k'"),
        (head(count=1, rest=entry("k", struct.pack("<IIQQ", 9, 8, 1, 1 << 62))), "k goes on beyond its end"),
        (head(count=1, rest=entry("k", struct.pack("<IQ", 8, 1 << 62))), "k goes on beyond its end"),
        (head(count=1, rest=struct.pack("<Q", 2) + b"\xff\xfe"), "a setting's name is not text"),
        (head(count=2, rest=NAMED + entry("general.alignment", fakes.setting(24))), "an alignment of 24"),
        (head(count=2, rest=NAMED + entry("general.alignment", fakes.setting(0))), "an alignment of 0"),
        (head(count=2, rest=NAMED + entry("general.alignment", fakes.setting("32"))), "an alignment of '32'"),
        (head(tensors=2, count=1, rest=NAMED + tensor() * 2), "a tensor is named 't' again"),
        (head(tensors=1, count=1, rest=NAMED + tensor("t" * 64)), "a tensor is named 't"),
        (head(tensors=1, count=1, rest=NAMED + tensor(shape=())), "t has 0 axes"),
        (head(tensors=1, count=1, rest=NAMED + tensor(shape=(1,) * 5)), "t has 5 axes"),
        (head(tensors=1, count=1, rest=NAMED + tensor(shape=(0, 4))), r"t is F32 \[0, 4\]"),
        (head(tensors=1, count=1, rest=NAMED + tensor(shape=(1 << 32, 1 << 32))), "t is F32"),
        (head(tensors=1, count=1, rest=NAMED + tensor(shape=(33,), kind=Q4_0)), r"t is Q4_0 \[33\]"),
        (head(tensors=1, count=1, rest=NAMED + tensor(kind=26)), "t is stored as number 26"),
        (head(tensors=1, count=1, rest=NAMED + tensor(offset=8)), "t lies at 8, not a multiple of 32"),
        (head(tensors=1, count=1, rest=NAMED + tensor(offset=1 << 63)), "t ends at 9223372036854776"),
    ],
)
def test_a_file_that_is_unsound(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=why):
        read(tmp_path, content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, HEAD))
        new = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from(WILD))
        content[at : at + len(new)] = new
    (tmp_path / "m.gguf").write_bytes(content)
    try:
        found = gguf.read(tmp_path / "m.gguf", LISTS)
    except BundleError:
        return
    for key in LISTS & found.settings.keys():
        assert not isinstance(stored := found.settings[key], GGUFArray) or len(stored.values or ()) == stored.count
    for entry in found.tensors.values():
        assert 0 < entry.offset <= entry.offset + entry.bytes <= len(content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_foreign_bytes(tmp_path: Path, content: bytes) -> None:
    for start in (b"", b"GGUF", b"GGUF\3\0\0\0"):
        with pytest.raises(BundleError):
            read(tmp_path, start + content)


# whether it is the decoder of the manifest


def test_the_decoder_of_the_manifest(tmp_path: Path) -> None:
    check_decoder(read(tmp_path, WHOLE), SPEC)
    shorter = replace(SPEC, context=100)
    check_decoder(read(tmp_path, WHOLE), shorter)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("llama.block_count", 3, r"llama.block_count is 3, expected 2"),
        ("llama.embedding_length", 65, "llama.embedding_length is 65, expected 64"),
        ("llama.attention.head_count", 0, "llama.attention.head_count is 0, expected 4"),
        ("llama.attention.head_count_kv", [2.0, 2.0], "llama.attention.head_count_kv is GGUFArray"),
        ("llama.attention.key_length", 8, "expected 16"),
        ("llama.rope.dimension_count", 8, "expected 16"),
        ("llama.rope.freq_base", 5000.0, "llama.rope.freq_base is 5000.0"),
        ("llama.rope.freq_base", 10000, "llama.rope.freq_base is 10000"),
        ("llama.vocab_size", 95, "expected 96"),
        ("llama.context_length", 1199, "llama.context_length is 1199"),
        ("llama.feed_forward_length", 0, "llama.feed_forward_length is 0"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, "layer_norm_rms_epsilon is -1.0"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon is nan"),
        ("llama.attention.layer_norm_epsilon", 2.0, "layer_norm_epsilon is 2.0"),
        ("llama.use_parallel_residual", True, "use_parallel_residual is True"),
        ("llama.expert_count", 1 << 20, "llama.expert_count is 1048576"),
        ("llama.rope.scaling.type", "strange", "llama.rope.scaling.type is 'strange'"),
        ("general.architecture", "smallthinker", "its architecture is 'smallthinker', which no export writes"),
        ("split.count", 3, "it is one of several files"),
    ],
)
def test_another_decoder(tmp_path: Path, key: str, value: Any, why: str) -> None:
    with pytest.raises(BundleError, match=r"m\.gguf is not the decoder that the manifest describes: .*" + why):
        check_decoder(read(tmp_path, decoder_bytes(settings={key: value})), SPEC)


@pytest.mark.parametrize("sizes", [{"heads": 0}, {"kv_heads": 3}, {"vocab": 0}])
def test_a_manifest_of_no_decoder(tmp_path: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(BundleError, match="is not the decoder"):
        check_decoder(read(tmp_path, WHOLE), replace(SPEC, **sizes))  # type: ignore[arg-type]


def test_tensors_of_another_decoder(tmp_path: Path) -> None:
    whole = read(tmp_path, WHOLE)
    norm = whole.tensors["output_norm.weight"]
    changes: dict[str, tuple[GGUFTensor | None, str]] = {
        "token_embd.weight": (None, r"token_embd.weight is \[\], expected \[64, 96\]"),
        "output.weight": (norm, r"output.weight is \[64\], expected \[64, 96\]"),
        "output_norm.weight": (replace(norm, kind="F16"), "output_norm.weight is stored as F16, expected F32"),
    }
    for name, (changed, why) in changes.items():
        rest = {k: v for k, v in whole.tensors.items() if k != name}
        tensors = rest | ({name: changed} if changed else {})
        with pytest.raises(BundleError, match=why):
            check_decoder(replace(whole, tensors=tensors), SPEC)
