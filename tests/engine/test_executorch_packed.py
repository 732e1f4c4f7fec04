"""Packed weights of ExecuTorch programs, kept in a file: a second start maps what the first packed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import edge_executorch
import numpy as np
import pytest
import torch

from edge.devices import file_facts
from edge.engines import open_part
from edge.formats import executorch, executorch_delegates, xnnpack_cache, xnnpack_descriptor
from edge.formats.executorch_delegates import Segments
from edge.formats.xnnpack_graph import Packed
from edge.types import Array, Graph, OpenOptions, PartFiles, TensorSpec
from exporters.formats.executorch import lower
from exporters.formats.executorch.linears import Product, store
from exporters.formats.executorch.lower import Method

OPTIONS, SIZE = OpenOptions(threads=1, context=8), 64
X = np.random.default_rng(1).normal(size=(1, 2, SIZE)).astype(np.float32)


class Chain(torch.nn.Module):
    """Linear layers of 8-bit weights with a gain between them, which XNNPACK reads where the file has it."""

    def __init__(self, *weights: torch.Tensor) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Product(store("", weight, None, "w8a8", None), ()) for weight in weights)
        self.register_buffer("gain", torch.linspace(0.5, 2, SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) * cast("torch.Tensor", self.gain)
        return x


def written(path: Path, *weights: torch.Tensor) -> PartFiles:
    lower.write(path, {"vision_encoder": Method(Chain(*weights), (torch.from_numpy(X),))}, {}, lambda done: None)
    ports = ((TensorSpec(name, "float32", X.shape),) for name in ("pixel_values", "image_embeds"))
    return PartFiles("executorch", "w8a8", ("vision", "projector"), (path,), *ports)


def weight(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> PartFiles:
    return written(tmp_path_factory.mktemp("packed") / "model.pte", weight(1), weight(2))


@pytest.fixture(scope="module")
def expected(part: PartFiles) -> Array:
    """Packed into memory."""
    program = edge_executorch.Program(part.files[0], ["vision_encoder"], 1)
    return program.run("vision_encoder", X)[0]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return xnnpack_cache.folder()


def answer(part: PartFiles) -> Array:
    return cast("Graph", open_part(part, "executorch_native", OPTIONS)).run({"pixel_values": X})["image_embeds"]


def test_a_second_start_maps_what_the_first_packed(part: PartFiles, expected: Array, cache: Path) -> None:
    np.testing.assert_array_equal(answer(part), expected)
    (kept,) = cache.iterdir()
    before = kept.read_bytes()
    assert len(before) > 2 * SIZE * SIZE
    opened = cast("Graph", open_part(part, "executorch_native", OPTIONS))
    assert kept.name in Path("/proc/self/maps").read_text(encoding="utf-8")
    np.testing.assert_array_equal(opened.run({"pixel_values": X})["image_embeds"], expected)
    assert [path.read_bytes() for path in cache.glob("*.bin")] == [before]


def test_weights_that_were_shipped_are_mapped(part: PartFiles, expected: Array, cache: Path, tmp_path: Path) -> None:
    answer(part)
    (kept,) = cache.glob("*.bin")
    shipped = kept.rename(tmp_path / kept.name)
    opened = cast("Graph", open_part(part, "executorch_native", replace(OPTIONS, warm=(shipped,))))
    assert str(shipped) in Path("/proc/self/maps").read_text(encoding="utf-8")
    np.testing.assert_array_equal(opened.run({"pixel_values": X})["image_embeds"], expected)
    assert list(cache.glob("*.bin")) == []


def test_the_weights_come_from_the_file(part: PartFiles, expected: Array, cache: Path) -> None:
    """Or nothing here would show that it is read at all."""
    answer(part)
    (kept,) = cache.glob("*.bin")
    changed = bytearray(kept.read_bytes())
    changed[: SIZE * SIZE] = bytes(SIZE * SIZE)
    with kept.open("r+b") as file:
        file.write(changed)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_SH)
        program = edge_executorch.Program(part.files[0], ["vision_encoder"], 1, packed=file.fileno())
    assert not np.array_equal(program.run("vision_encoder", X)[0], expected)


@pytest.mark.parametrize("place", [0, 0.5, -1, None], ids=str)
def test_a_damaged_file_is_made_again(part: PartFiles, expected: Array, cache: Path, place: float | None) -> None:
    answer(part)
    (kept,) = cache.glob("*.bin")
    sound = kept.read_bytes()
    damaged = bytearray(sound)
    if place is None:  # a torn write
        damaged = damaged[: len(damaged) // 2]
    else:
        damaged[int(place * len(sound)) if place > 0 else int(place)] ^= 255
    kept.write_bytes(damaged)
    np.testing.assert_array_equal(answer(part), expected)
    assert [path.read_bytes() for path in cache.glob("*.bin")] == [sound]


SECOND = """
import sys, numpy as np
from edge.engines import open_part
from edge.types import OpenOptions, PartFiles, TensorSpec
from pathlib import Path
shape = (1, 2, 64)
ports = ((TensorSpec(name, "float32", shape),) for name in ("pixel_values", "image_embeds"))
part = PartFiles("executorch", "w8a8", ("vision", "projector"), (Path(sys.argv[1]),), *ports)
made = open_part(part, "executorch_native", OpenOptions(threads=1, context=8))
print(sys.argv[2] in Path("/proc/self/maps").read_text())
print(made.run({"pixel_values": np.load(sys.argv[3])})["image_embeds"].tobytes().hex())
"""


def test_two_processes_map_one_file(part: PartFiles, expected: Array, cache: Path, tmp_path: Path) -> None:
    """Neither locks the other out, and what one has mapped the other does not empty."""
    answer(part)
    (kept,) = cache.glob("*.bin")
    before = kept.read_bytes()
    opened = cast("Graph", open_part(part, "executorch_native", OPTIONS))
    np.save(tmp_path / "x.npy", X)
    arguments = [str(part.files[0]), kept.name, str(tmp_path / "x.npy")]
    done = subprocess.run([sys.executable, "-c", SECOND, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", expected.tobytes().hex()]
    np.testing.assert_array_equal(opened.run({"pixel_values": X})["image_embeds"], expected)
    assert kept.read_bytes() == before


def test_a_file_that_is_being_written_is_left_alone(part: PartFiles, expected: Array, cache: Path) -> None:
    answer(part)
    (kept,) = cache.glob("*.bin")
    before = kept.read_bytes()
    with kept.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        np.testing.assert_array_equal(answer(part), expected)
    assert kept.read_bytes() == before


def test_a_full_disk_is_no_error(
    part: PartFiles, expected: Array, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "sendfile", full)
    np.testing.assert_array_equal(answer(part), expected)
    assert list(cache.iterdir()) == []


def test_a_home_that_is_read_only_is_no_error(
    part: PartFiles, expected: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file
    np.testing.assert_array_equal(answer(part), expected)


def test_no_memory_that_is_a_file_is_no_error(
    part: PartFiles, expected: Array, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", none)
    np.testing.assert_array_equal(answer(part), expected)
    assert list(cache.iterdir()) == []


def test_what_was_packed_belongs_to_a_content_and_a_version(part: PartFiles, tmp_path: Path) -> None:
    """Not to a place: a copy of the bundle packs nothing."""
    path, copy, other = part.files[0], tmp_path / "copy.pte", tmp_path / "other.pte"
    copy.write_bytes(path.read_bytes())
    other.write_bytes(path.read_bytes()[:-1] + b"\x01")
    key = xnnpack_cache.key(path, "library 1")
    assert xnnpack_cache.key(copy, "library 1") == key
    assert key not in (xnnpack_cache.key(other, "library 1"), xnnpack_cache.key(path, "library 2"))


def test_weights_that_share_integers_are_not_kept_by_name(tmp_path: Path, cache: Path) -> None:
    """Integers alike, of twice the scales: the library would take the one for the other."""
    part = written(tmp_path / "model.pte", weight(1), 2 * weight(1))
    program = edge_executorch.Program(part.files[0], ["vision_encoder"], 1)
    assert not executorch.read(part.files[0]).apart
    np.testing.assert_array_equal(answer(part), program.run("vision_encoder", X)[0])
    assert not cache.exists()
    memory = os.memfd_create("packed")
    taken = edge_executorch.Program(part.files[0], ["vision_encoder"], 1, packed=memory)
    assert not np.array_equal(taken.run("vision_encoder", X)[0], program.run("vision_encoder", X)[0])
    os.close(memory)


def test_what_packed_weights_can_be_told_apart_by() -> None:
    whole = Segments(np.zeros(9, np.uint8), np.array([4, 0, 2]), np.array([2, 2, 2]), {}, True)
    assert whole.apart
    assert not replace(whole, begin=np.array([4, 0, 1])).apart  # two share a byte
    assert not replace(whole, alone=False).apart
    mean, other = Packed("a", 2, (1, 8), 1), Packed("b", 2, (8, 8), 3)
    told = executorch_delegates._told_apart
    assert told([mean, mean, other])
    assert not told([mean, mean._replace(shape=(8, 1))])
    assert not told([other, other])


def test_a_descriptor_is_given_back(part: PartFiles, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_facts, "_SETTLED", 0.0)
    answer(part)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        answer(part)
    with pytest.raises(ZeroDivisionError), xnnpack_descriptor.weights(part.files[0], "library"):
        raise ZeroDivisionError
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(list(cache.glob("*.bin"))) == 1
