"""The safetensors reader: every rule of the header, and comparison with the safetensors package."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gpt2c.errors import CheckpointError, CheckpointNotFoundError, ClosedError, OptionError
from gpt2c.formats import raw_file
from gpt2c.formats.safetensors_file import SafetensorsFile


def pack(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def read_with_package(content: bytes) -> dict[str, Any]:
    """Read with the safetensors package: dtype, shape and data by name."""
    return dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


@pytest.fixture
def small(path: Path) -> Iterator[SafetensorsFile]:
    """Tensor "a", F32 [4, 3], holding 0 to 11."""
    safetensors.numpy.save_file({"a": np.arange(12, dtype=np.float32).reshape(4, 3)}, path)
    file = SafetensorsFile(path)
    yield file
    file.close()


A = entry([2], 0, 8)  # eight bytes of float32
HUGE = 2**40
REJECTED = {
    "empty file": (b"", "found 0 bytes"),
    "shorter than a length": (b"\2\0\0\0", "found 4 bytes"),
    "length beyond the file": (struct.pack("<Q", 3) + b"{}", "length of 3, expected at most 2"),
    "length beyond all files": (struct.pack("<Q", 2**64 - 1) + b"{}", "length of 1844674407"),
    "no header": (pack(b""), "found b'' at the header's start"),
    "not an object": (pack(b"[]"), "expected '{'"),
    "space before": (pack(b" {}"), "expected '{'"),
    "byte order mark": (pack(b"\xef\xbb\xbf{}"), "expected '{'"),
    "not UTF-8": (pack(b'{"\xff": 1}'), "is not UTF-8 at byte 2"),
    "not JSON": (pack(b"{'a': 1}"), "is not JSON"),
    "cut JSON": (pack(b'{"a": {'), "is not JSON"),
    "two JSON values": (pack(b"{}{}"), "is not JSON"),
    "NaN": (pack(b'{"a": NaN}'), "NaN"),
    "equal names": (pack(b'{"a": {}, "a": {}}'), "has the key 'a' twice"),
    "equal fields": (pack(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' twice"),
    "unpaired surrogate": (pack(b'{"\\ud800": 1}'), "unpaired surrogate"),
    "deep list": (pack(b'{"a":' + b"[" * 50_000), "levels deep"),
    "deep objects": (pack(b'{"a":' * 50_000), "levels deep"),
    "metadata no object": (pack({"__metadata__": ["x"]}), "__metadata__ ['x']"),
    "metadata null": (pack({"__metadata__": None}), "__metadata__ None"),
    "metadata number": (pack({"__metadata__": {"x": 1}}), "has 1 in __metadata__ at 'x'"),
    "metadata nested": (pack({"__metadata__": {"x": {}}}), "has {} in __metadata__ at 'x'"),
    "entry no object": (pack({"a": 5}), "tensor 'a': found 5"),
    "entry without shape": (pack({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), "tensor 'a'"),
    "entry with more": (pack({"a": A | {"x": 1}}, bytes(8)), "expected dtype, shape and"),
    "unknown dtype": (pack({"a": entry([2], 0, 8, "F31")}, bytes(8)), "dtype 'F31'"),
    "dtype no string": (pack({"a": entry([2], 0, 8, ["F32"])}, bytes(8)), "dtype ['F32']"),
    "lower-case dtype": (pack({"a": entry([2], 0, 8, "f32")}, bytes(8)), "dtype 'f32'"),
    "sub-byte dtype": (pack({"a": entry([2], 0, 1, "F4")}, bytes(1)), "sub-byte dtype 'F4'"),
    "negative axis": (pack({"a": entry([-2], 0, 8)}, bytes(8)), "tensor 'a': shape: found -2"),
    "float axis": (pack({"a": entry([2.0], 0, 8)}, bytes(8)), "found 2.0"),
    "bool axis": (pack({"a": entry([True], 0, 4)}, bytes(4)), "found True"),
    "string axis": (pack({"a": entry(["2"], 0, 8)}, bytes(8)), "found '2'"),
    "minus zero": (pack(b'{"a": -0}'), "'-0'"),
    "axis beyond 2**53": (pack({"a": entry([0, 2**53 + 1], 0, 0)}), "found 9007199254740993"),
    "axis beyond 2**64": (pack({"a": entry([2**70], 0, 0)}), "not a 64-bit integer"),
    "shape no list": (pack({"a": A | {"shape": 2}}, bytes(8)), "shape: found 2"),
    "five axes": (pack({"a": entry([1, 1, 1, 1, 2], 0, 8)}, bytes(8)), "found 5 axes"),
    "product overflows": (pack({"a": entry([HUGE, HUGE], 0, 8)}, bytes(8)), "overflows"),
    "product wraps to 0": (pack({"a": entry([2**32, 2**32], 0, 0)}), "overflows"),
    "overflow, then 0": (pack({"a": entry([HUGE, HUGE, 0], 0, 0)}), "overflows"),
    "negative offset": (pack({"a": entry([2], -8, 0)}, bytes(8)), "data_offsets: found -8"),
    "float offset": (pack({"a": entry([2], 0, 8.0)}, bytes(8)), "data_offsets: found 8.0"),
    "offsets out of order": (pack({"a": entry([2], 8, 0)}, bytes(8)), "[8, 0]"),
    "three offsets": (pack({"a": A | {"data_offsets": [0, 4, 8]}}, bytes(8)), "[0, 4, 8]"),
    "size is not shape": (pack({"a": entry([3], 0, 8)}, bytes(8)), "expected 12 for F32 [3]"),
    "overlap": (pack({"a": A, "b": entry([2], 4, 12)}, bytes(12)), "'b' overlaps"),
    "same place twice": (pack({"a": A, "b": A}, bytes(8)), "'b' overlaps"),
    "gap": (pack({"a": A, "b": entry([1], 12, 16)}, bytes(16)), "'b' leaves a gap"),
    "gap at the start": (pack({"a": entry([1], 4, 8)}, bytes(8)), "'a' leaves a gap"),
    "beyond the end": (pack({"a": A}, bytes(7)), "ends at byte 77, and the file at 76"),
    "far beyond the end": (pack({"a": entry([HUGE], 0, 4 * HUGE)}, bytes(8)), "the file is cut"),
    "trailing bytes": (pack({"a": A}, bytes(9)), "found 78 bytes, expected 77"),
    "trailing bytes only": (pack({}, bytes(1)), "found 11 bytes, expected 10"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
def test_rejected(path: Path, case: str) -> None:
    content, message = REJECTED[case]
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 500


def test_a_header_above_the_maximum_size(path: Path) -> None:
    with path.open("wb") as file:  # a sparse file takes no disk space
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(8 + 100_000_001)
    with pytest.raises(CheckpointError, match="of 100000001, expected at most 100000000"):
        SafetensorsFile(path)


def test_long_names_are_shortened_in_errors(path: Path) -> None:
    path.write_bytes(pack({"x" * 10**6: 1}))
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert len(str(caught.value)) < len(str(path)) + 500


def test_deep_json_under_a_raised_recursion_limit(path: Path) -> None:
    path.write_bytes(pack(b'{"a":' + b"[" * 1_000_000))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)  # json.loads alone would then overflow the C stack
    try:
        with pytest.raises(CheckpointError, match="levels deep"):
            SafetensorsFile(path)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("case", REJECTED)
def test_small_files_take_little_memory(path: Path, case: str) -> None:
    content = REJECTED[case][0]
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)
        assert tracemalloc.get_traced_memory()[1] < 10**6 + 20 * len(content)
    finally:
        tracemalloc.stop()


def test_unusual_valid_files(path: Path) -> None:
    """Tensors may be in any order, empty or scalar; a header may be padded or have no tensors."""
    tensors = {
        "b": entry([1], 4, 8),
        "a": entry([], 0, 4),
        "empty": entry([0, HUGE], 4, 4),
        "mask": entry([1, 1, 2, 2], 8, 12, "BOOL"),
        "__metadata__": {"format": "pt", "ü": ""},
    }
    content = pack(json.dumps(tensors).encode() + b"   ", struct.pack("<ff", 1, 2) + bytes(4))
    path.write_bytes(content)
    assert read_with_package(content).keys() == {"a", "b", "empty", "mask"}
    file = SafetensorsFile(path)
    assert file.tensors["a"].shape == ()
    assert file.named_source("empty", "empty").read(0, 0).shape == (0, HUGE)
    assert file.named_source("b", "b").read(0, 1).tolist() == [2]
    file.close()
    path.write_bytes(pack({}))
    file = SafetensorsFile(path)
    assert file.tensors == {}
    file.close()


def float32_of(raw: bytes, dtype: str) -> NDArray[np.float32]:
    """Convert to float32 in the plainest way."""
    if dtype == "BF16":
        words = np.frombuffer(raw, "<u2")
        return np.array([struct.unpack("<f", struct.pack("<HH", 0, w))[0] for w in words], "f4")
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]
    with np.errstate(all="ignore"):
        return np.frombuffer(raw, kind).astype(np.float32)


TENSOR = st.tuples(
    st.sampled_from(["F64", "F32", "F16", "BF16"]),
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    st.integers(0, 2**32 - 1),
)


WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def serialize(blobs: dict[str, tuple[str, tuple[int, ...], NDArray[np.uint8]]]) -> bytes:
    """Serialize with the safetensors package's raw interface, which accepts bfloat16."""
    specs: dict[str, Any] = {}
    for name, (dtype, shape, blob) in blobs.items():
        if hasattr(safetensors, "TensorSpec"):
            specs[name] = safetensors.TensorSpec(
                dtype=NAMES[dtype], shape=shape, data_ptr=blob.ctypes.data, data_len=blob.nbytes
            )
        else:  # before safetensors 0.8
            specs[name] = {"dtype": NAMES[dtype], "shape": shape, "data": blob.tobytes()}
    return safetensors.serialize(specs, metadata={"format": "pt"})


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text('aü."\\ [{', min_size=1), TENSOR, min_size=1, max_size=4), st.data())
def test_reads_what_the_safetensors_package_writes(
    tensors: dict[str, tuple[str, tuple[int, ...], int]], data: st.DataObject
) -> None:
    blobs = {
        name: (
            dtype,
            shape,
            np.random.default_rng(seed).integers(
                0, 256, int(np.prod(shape)) * WIDTHS[dtype], dtype=np.uint8
            ),
        )
        for name, (dtype, shape, seed) in tensors.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(serialize(blobs))
        with contextlib.closing(SafetensorsFile(path)) as file:
            assert file.tensors.keys() == tensors.keys()
            for name, (dtype, shape, blob) in blobs.items():
                source = file.named_source(name, name)
                assert (source.dtype, source.shape) == (dtype, shape)
                begin = data.draw(st.integers(0, shape[0]))
                end = data.draw(st.integers(begin, shape[0]))
                rows = source.read(begin, end)
                expected = float32_of(blob.tobytes(), dtype).reshape(shape)[begin:end]
                assert rows.flags.c_contiguous
                assert rows.dtype == np.float32
                np.testing.assert_array_equal(rows, expected)  # NaNs equal NaNs


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_all_16_bit_values(path: Path, dtype: str) -> None:
    raw = np.arange(2**16, dtype="<u2").tobytes()
    path.write_bytes(pack({"a": entry([2**16], 0, 2**17, dtype)}, raw))
    file = SafetensorsFile(path)
    got = file.named_source("a", "a").read(0, 2**16)
    file.close()
    expected = float32_of(raw, dtype)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_rows_longer_and_shorter_than_a_chunk(
    path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = WIDTHS[dtype]
    raw = np.random.default_rng(1).integers(0, 120, 21 * 10 * width, dtype=np.uint8).tobytes()
    path.write_bytes(pack({"a": entry([21, 10], 0, len(raw), dtype)}, raw))
    expected = float32_of(raw, dtype).reshape(21, 10)
    file = SafetensorsFile(path)
    for chunk in (8, 24, 64, 1000, 2**20):
        monkeypatch.setattr(raw_file, "_CHUNK", chunk)
        for begin, end in ((0, 21), (3, 4), (5, 5), (20, 21), (1, 17)):
            np.testing.assert_array_equal(
                file.named_source("a", "a").read(begin, end), expected[begin:end]
            )
    file.close()


def test_float64_is_rounded_to_float32(path: Path) -> None:
    values = [1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e300, -1e300, 1e-300, float("inf")]
    safetensors.numpy.save_file({"a": np.array(values)}, path)
    file = SafetensorsFile(path)
    got = file.named_source("a", "a").read(0, 6).tolist()
    file.close()
    assert got == [1, 1 + 2.0**-22, float("inf"), -float("inf"), 0, float("inf")]


def test_rows_out_of_range(small: SafetensorsFile) -> None:
    for begin, end in ((-1, 2), (2, 1), (0, 5), (5, 5)):
        with pytest.raises(OptionError, match="in its 4 rows"):
            small.named_source("a", "a").read(begin, end)


def test_each_read_returns_a_new_array(small: SafetensorsFile) -> None:
    rows = small.named_source("a", "a").read(0, 4)
    rows[:] = 0
    assert small.named_source("a", "a").read(0, 4).sum() == 66


def test_short_reads_are_continued(small: SafetensorsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:5]], at))
    assert small.named_source("a", "a").read(1, 3).tolist() == [[3, 4, 5], [6, 7, 8]]


def test_a_file_truncated_while_it_is_read(small: SafetensorsFile) -> None:
    os.truncate(small.path, small.path.stat().st_size - 4)
    source = small.named_source("a", "h.0.ln_1.weight")
    assert source.read(0, 3).shape == (3, 3)
    with pytest.raises(CheckpointError, match=r"h\.0\.ln_1\.weight.*truncated while it was read"):
        source.read(0, 4)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        small.verify_unchanged()


def test_a_file_changed_in_place(small: SafetensorsFile) -> None:
    small.verify_unchanged()
    os.utime(small.path, ns=(0, 12345))
    with pytest.raises(CheckpointError, match="12345"):
        small.verify_unchanged()


def test_a_file_replaced_by_another(small: SafetensorsFile) -> None:
    """The opened file stays readable when another file takes its name."""
    other = small.path.with_name("y")
    other.write_bytes(b"")
    os.replace(other, small.path)
    assert small.named_source("a", "a").read(0, 4).sum() == 66
    small.verify_unchanged()


def test_reads_after_close(small: SafetensorsFile) -> None:
    small.close()
    small.close()
    with pytest.raises(ClosedError):
        small.named_source("a", "a").read(0, 1)
    with pytest.raises(ClosedError):
        small.verify_unchanged()


def test_no_descriptor_is_left_open(path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    path.write_bytes(pack({"a": 1}))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_paths_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        SafetensorsFile(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        SafetensorsFile(tmp_path)
