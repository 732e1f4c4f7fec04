"""Weights: every layout and dtype reads the same numbers; what is damaged, unsafe or incomplete says so by name."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from edge.errors import CheckpointError
from exporters.sources import weights as module
from exporters.sources.weights import Weights

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    made = {f"layer.{i}.weight": torch.randn(3, 2 + i, generator=generator).to(dtype) for i in range(5)}
    return made | {"scalar": torch.tensor(2.5, dtype=dtype), "position_ids": torch.arange(4)}


def store(folder, found, *, format, shards=1, zipped=True):
    stem, suffix = ("model", ".safetensors") if format == "safetensors" else ("pytorch_model", ".bin")
    where = {}
    for index in range(shards):
        name = f"{stem}-{index + 1:05}-of-{shards:05}{suffix}" if shards > 1 else stem + suffix
        part = {key: found[key] for key in list(found)[index::shards]}
        if format == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name, _use_new_zipfile_serialization=zipped)
        where |= dict.fromkeys(part, name)
    if shards > 1:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("format", "zipped"), [("safetensors", True), ("bin", True), ("bin", False)])
def test_layouts(tmp_path, format, zipped, shards, dtype):
    expected = tensors(dtype)
    store(tmp_path, expected, format=format, shards=shards, zipped=zipped)
    found = Weights.open(tmp_path)
    assert set(found.names) == set(found) == set(expected)
    assert len(found) == len(expected)
    for name, tensor in expected.items():
        assert found.shape(name) == tuple(tensor.shape)
        assert found.dtype(name) == found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert "layer.0.weight" in found
    assert "layer.9.weight" not in found
    with pytest.raises(KeyError):
        found["layer.9.weight"]


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_writing_into_a_read_tensor_leaves_the_file_alone(tmp_path, format):
    store(tmp_path, tensors(), format=format)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    Weights.open(tmp_path)["layer.0.weight"].zero_()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_and_shapes_read_no_tensor(tmp_path, monkeypatch):
    store(tmp_path, tensors(), format="safetensors", shards=3)
    read = []
    monkeypatch.setattr(module, "_tensor", lambda path, name: read.append((path.name, name)))
    found = Weights.open(tmp_path)
    assert all(found.shape(n) is not None and found.dtype(n) and n in found for n in found)
    assert read == []
    found["layer.1.weight"]
    assert read == [("model-00002-of-00003.safetensors", "layer.1.weight")]


def test_safetensors_come_first(tmp_path):
    store(tmp_path, {"a": torch.ones(1)}, format="bin")
    store(tmp_path, {"a": torch.zeros(1)}, format="safetensors")
    assert Weights.open(tmp_path)["a"].item() == 0


def test_folders_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="has no weights") as caught:
        Weights.open(tmp_path)
    assert "pytorch_model.bin.index.json" in caught.value.hint
    with pytest.raises(CheckpointError, match="is not a folder"):
        Weights.open(tmp_path / "nowhere")


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_missing_shard_is_named(tmp_path, format):
    store(tmp_path, tensors(), format=format, shards=3)
    next(tmp_path.glob("*-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match=r"lacks .*-00002-of-00003"):
        Weights.open(tmp_path)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_key_that_the_shard_lacks_is_named(tmp_path, format):
    store(tmp_path, tensors(), format=format, shards=2)
    path = next(tmp_path.glob("*.index.json"))
    index = json.loads(path.read_text())
    index["weight_map"]["model.ghost"] = index["weight_map"]["layer.0.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"00001-of-00002.*model\.ghost"):
        Weights.open(tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "sub/a", "..", "c:\\a", "..\\a", ""])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        Weights.open(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\xff"]
)
def test_damaged_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"index\.json (is damaged|names no tensor)"):
        Weights.open(tmp_path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, zipped):
    trap = tmp_path / "trap"
    torch.save({"a": Evil(trap)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"would run code: it asks for (posix|nt)\.mkdir"):
        Weights.open(tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"model": {"a": torch.ones(1)}}, {"step": 3}])
def test_what_is_not_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a mapping of names to tensors"):
        Weights.open(tmp_path)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_dtype_that_is_not_read_is_named(tmp_path, format):
    store(tmp_path, {"odd": torch.zeros(4, dtype=torch.float8_e4m3fn)}, format=format)
    with pytest.raises(CheckpointError, match=r"'odd' is stored as .*[fF]8|'odd' is stored as torch\.float8"):
        Weights.open(tmp_path)


def test_a_git_lfs_pointer_says_so(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(CheckpointError, match="pointer of git-lfs") as caught:
        Weights.open(tmp_path)
    assert "git lfs pull" in caught.value.hint


def stored_bytes(format):
    if format == "safetensors":
        return save(tensors())
    with tempfile.TemporaryDirectory() as folder:
        store(Path(folder), tensors(), format="bin", zipped=format == "zip")
        return (Path(folder) / "pytorch_model.bin").read_bytes()


STORED = {format: stored_bytes(format) for format in ("safetensors", "zip", "legacy")}


def opened(format, content):
    with tempfile.TemporaryDirectory() as folder:
        name = "model.safetensors" if format == "safetensors" else "pytorch_model.bin"
        (Path(folder) / name).write_bytes(content)
        found = Weights.open(Path(folder))
        return {name: found[name].clone() for name in found}


@pytest.mark.parametrize("format", STORED)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_truncated_files(format, data):
    whole = STORED[format]
    length = data.draw(st.integers(0, len(whole) - 1))
    # A pickle that ends in the middle of a name asks for something that is not known.
    with pytest.raises(CheckpointError, match=r"is damaged|would run code"):
        opened(format, whole[:length])


@pytest.mark.parametrize("format", STORED)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_an_error_or_other_numbers(format, data):
    content = bytearray(STORED[format])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = opened(format, bytes(content))
    except CheckpointError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def test_sha256_is_of_the_content(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for folder in folders:
        folder.mkdir()
        store(folder, tensors(), format="safetensors", shards=2)
    first, same, other = (Weights.open(folder) for folder in folders)
    shard = folders[2] / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert first.sha256() == same.sha256()
    assert len(first.sha256()) == 64
    assert other.sha256() != first.sha256()


def test_merged_and_within(tmp_path):
    for name, value in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        store(
            tmp_path / name, {"x.own." + name: torch.full((2,), value), "x.both": torch.full((2,), value)}, format="bin"
        )
    one, two = Weights.open(tmp_path / "a"), Weights.open(tmp_path / "b")
    both = one.merged(two)
    assert set(both) == {"x.own.a", "x.own.b", "x.both"}
    assert both["x.both"].tolist() == [1.0, 1.0]
    assert both["x.own.a"].tolist() == [0.0, 0.0]
    assert both.sha256() not in (one.sha256(), two.sha256())
    assert both.within("x.own.").names == ("x.own.a", "x.own.b")


def odd(name):
    return {
        "one number for many": torch.zeros(1).expand(10**6, 10**6),
        "no numbers": torch.zeros(4, device="meta"),
        "few of many": torch.eye(4).to_sparse(),
        "rows": torch.eye(4).to_sparse_csr(),
    }[name]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", ["one number for many", "no numbers", "few of many", "rows"])
def test_a_tensor_whose_numbers_are_not_in_the_file_is_refused(tmp_path, name):
    torch.save({"x": odd(name)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="'x' is no plain tensor whose numbers are all in the file"):
        Weights.open(tmp_path)


def test_tensors_that_share_their_numbers_are_read(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"turned": whole.T, "row": whole[1], "whole": whole}, tmp_path / "pytorch_model.bin")
    found = Weights.open(tmp_path)
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["row"], whole[1])


def test_what_inflates_is_not_unpacked(tmp_path):
    torch.save({"x": torch.ones(3)}, tmp_path / "plain.bin")
    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as plain,
        zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry) + bytes(1 << 20))
    with pytest.raises(CheckpointError, match="is compressed, as torch never writes it"):
        Weights.open(tmp_path)
