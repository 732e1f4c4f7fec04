"""The reader and writer of safetensors, held to the format's own library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from edge.bundle import safetensors as ours
from edge.errors import BundleError

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
dtypes = st.sampled_from([np.dtype(kind) for kind in ours.DTYPES.values()])
shapes = arrays_of.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
arrays = st.dictionaries(names, dtypes.flatmap(lambda dtype: arrays_of.arrays(dtype, shapes)), max_size=5)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


@given(made=arrays)
@settings(max_examples=200, deadline=None)
def test_the_formats_library_reads_what_is_written(made: dict[str, Any], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    ours.write(path, made)
    same(theirs.load_file(path), made)
    same(ours.read(path), made)


@given(made=arrays, metadata=st.none() | st.dictionaries(names, names, min_size=1, max_size=2))
@settings(max_examples=200, deadline=None)
def test_what_the_formats_library_writes_is_read(made: dict[str, Any], metadata: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "theirs.safetensors"
    theirs.save_file(made, path, metadata)
    same(ours.read(path), made)


def test_numbers_are_aligned_for_who_maps_the_file(tmp_path: Path) -> None:
    made = {"bytes": np.zeros(3, np.uint8), "halves": np.zeros(5, np.float16), "wide": np.zeros(3, np.int64)}
    ours.write(tmp_path / "x", made | {"single": np.zeros(7, np.float32)})
    content = (tmp_path / "x").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8:start]).items():
        width = np.dtype(ours.DTYPES[entry["dtype"]]).itemsize
        assert (start + entry["data_offsets"][0]) % width == 0, name


@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=400, deadline=None)
def test_only_a_bundle_error_escapes_a_changed_byte(at: int, byte: int, cut: bool, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    ours.write(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((1, 0), np.uint8)})
    content = bytearray(path.read_bytes())
    at %= len(content)
    content[at] = byte
    path.write_bytes(content[:at] if cut else content)
    read_or_refused(path)


numbers = st.sampled_from([-1, 0, 1, 2, 3, 4, 24, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, 4.0, True, None, "4"])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "F8_E4M3", "BF16", "I4", "", None, 4, []]),
        "shape": st.lists(numbers, max_size=3) | numbers | st.just([1] * 100),
        "data_offsets": st.lists(numbers, max_size=3) | numbers,
        "more": st.just(1),
    },
)


@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries | numbers, max_size=3) | numbers,
    length=st.none() | st.sampled_from([0, 1, 7, 8, 10**6, 2**32, 2**63, 2**64 - 1]),
    data=st.binary(max_size=32),
)
@settings(max_examples=600, deadline=None)
def test_only_a_bundle_error_escapes_an_invented_header(
    header: Any, length: int | None, data: bytes, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "invented.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    read_or_refused(path)


def read_or_refused(path: Path) -> None:
    """What the format's library refuses is refused; what is read is what that reads."""
    try:
        found = ours.read(path)
    except BundleError:
        return
    same(found, theirs.load_file(path))


def written(path: Path, header: str, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    return path


FOUR = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (f'{{"a":{FOUR}}}', b"", "take 4 bytes, and it holds 0"),
        (f'{{"a":{FOUR}}}', bytes(5), "take 4 bytes, and it holds 5"),
        (f'{{"a":{FOUR},"b":{FOUR}}}', bytes(4), "'b' begins at byte 0, expected 4"),
        (f'{{"a":{FOUR},"a":{FOUR}}}', bytes(4), "names something twice"),
        ('{"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}}', bytes(5), "begins at byte 1, expected 0"),
        ('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}', bytes(4), "is F32 .*lies in bytes 0 to 4"),
        ('{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', bytes(4), "dtype 'BF16', which is not read"),
        ('{"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}', bytes(4), "has the shape"),
        ('{"a":{"dtype":"U8","shape":[4]}}', bytes(4), "not described by"),
        ("[]", b"", "no JSON object"),
        ("[" * 100_000, b"", "recursion"),
        ("9" * 5000, b"", "integer string conversion"),
        ('{"__metadata__":{"a":1}}', b"", "__metadata__ is no object of texts"),
        ("", b"", "Expecting value"),
    ],
)
def test_damage_is_named(tmp_path: Path, header: str, data: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=why) as caught:
        ours.read(written(tmp_path / "x.safetensors", header, data))
    assert "export" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"1234567", (2**64 - 1).to_bytes(8, "little") + b"{}"])
def test_a_header_that_is_longer_than_the_file_is_not_allocated(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BundleError, match=rf"a header of \d+ bytes, in a file of {len(content)}"):
        ours.read(tmp_path / "x")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="x cannot be read"):
        ours.read(tmp_path / "x")
