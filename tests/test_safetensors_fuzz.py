"""Mutated safetensors headers raise CheckpointError or are read as the safetensors package does."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import safetensors

from gpt2c.errors import CheckpointError
from gpt2c.formats.safetensors_file import SafetensorsFile

ORIGIN = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
        "c": {"dtype": "F64", "shape": [], "data_offsets": [16, 24]},
        "d": {"dtype": "U8", "shape": [4], "data_offsets": [24, 28]},
    },
    separators=(",", ":"),
).encode()
WORDS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u0000", b"\xff", b"\0", b" ", b"0", b"-1",
    b"1e9", b"1.0", b"true", b"null", b"NaN", b"9007199254740993", b"18446744073709551616",
    b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F4"', b'"F16"', b'"BF16"',
    b'"I8"', b"[0,8]", b"[8,0]", b"[]", b"{}",
]  # fmt: skip


def mutate(rng: random.Random, header: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(header) + 1)
        to = min(len(header), at + rng.choice((0, 1, 1, 2, 8)))
        kind = rng.randrange(5)
        if kind == 0:  # insert a word, or replace bytes with one
            header = header[:at] + rng.choice(WORDS) + header[to:]
        elif kind == 1:  # delete
            header = header[:at] + header[to:]
        elif kind == 2:  # repeat
            start = rng.randrange(at + 1)
            header = header[:at] + header[start:at] + header[at:]
        elif kind == 3:  # flip a bit
            if at < len(header):
                header = (
                    header[:at] + bytes([header[at] ^ 1 << rng.randrange(8)]) + header[at + 1 :]
                )
        else:  # replace a digit with a number
            digits = [i for i, byte in enumerate(header) if 48 <= byte <= 57]
            if digits:
                spot = rng.choice(digits)
                header = (
                    header[:spot] + str(rng.choice((0, 1, 4, 8, 16))).encode() + header[spot + 1 :]
                )
    return header


def test_mutated_headers_are_refused_or_read_like_the_package(tmp_path: Path) -> None:
    """The package accepts every header that we accept, and reads the same tensors."""
    rng = random.Random(20)
    path = tmp_path / "x.safetensors"
    accepted = 0
    for _ in range(3000):
        header = mutate(rng, ORIGIN)
        length = len(header) + rng.choice((0,) * 20 + (1, -1, 2**40))
        content = (
            struct.pack("<Q", max(length, 0)) + header + bytes(28 + rng.choice((0,) * 20 + (-4,)))
        )
        path.write_bytes(content)
        try:
            file = SafetensorsFile(path)
        except CheckpointError as error:
            str(error).encode()
            continue
        accepted += 1
        theirs = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
        assert theirs.keys() == file.tensors.keys()
        for name, info in file.tensors.items():
            assert (info.dtype, list(info.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
            assert content[info.begin : info.end] == bytes(theirs[name]["data"])
        file.close()
    assert 100 < accepted < 1500  # neither too few nor too many are accepted
