"""The header: what is right is read, every kind of lie is a CheckpointError, and nothing else comes out."""

import json
import random
import struct
import tracemalloc

import pytest
import torch
from tiny_checkpoint import header_and_data, save, write_file

from moelens.checkpoint.safetensors import read_header
from moelens.errors import CheckpointError, UnsupportedModelError

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "scalar": torch.tensor([1.0], dtype=torch.float16),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_ranges_of_the_data(path):
    save(path, TENSORS)
    found = read_header(path)
    assert found.keys() == TENSORS.keys()
    content = path.read_bytes()
    for name, tensor in TENSORS.items():
        assert found[name].shape == tuple(tensor.shape) and found[name].torch_dtype == tensor.dtype
        stored = bytearray(content[found[name].begin : found[name].end])
        assert len(stored) == tensor.numel() * tensor.dtype.itemsize
        assert not stored or torch.equal(torch.frombuffer(stored, dtype=tensor.dtype).view(tensor.shape), tensor)


def test_what_the_safetensors_package_writes(path):
    from safetensors.torch import save_file

    save_file(TENSORS, path, metadata={"format": "pt"})
    found = read_header(path)
    assert {name: t.shape for name, t in found.items()} == {name: tuple(t.shape) for name, t in TENSORS.items()}


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


LIES = {
    "dtype unknown": ({"x": entry(dtype="F31")}, 4, r"tensor 'x': expected a dtype among .*found 'F31'"),
    "dtype no string": ({"x": entry(dtype=["F32"])}, 4, "expected a dtype among"),
    "dtype missing": ({"x": {"shape": [1], "data_offsets": [0, 4]}}, 4, "expected an object of dtype, shape"),
    "field unknown": ({"x": entry(strides=[1])}, 4, "expected an object of dtype, shape"),
    "entry no object": ({"x": [1]}, 4, "expected an object of dtype, shape"),
    "shape negative": ({"x": entry(shape=[-1])}, 4, r"expected a shape of non-negative whole numbers, found '\[-1\]'"),
    "shape a number": ({"x": entry(shape=1)}, 4, "expected a shape"),
    "shape fractional": ({"x": entry(shape=[1.0])}, 4, "expected a shape"),
    "shape of booleans": ({"x": entry(shape=[True])}, 4, "expected a shape"),
    "shape of null": ({"x": entry(shape=[None])}, 4, "expected a shape"),
    "shape of many dimensions": ({"x": entry(shape=[1] * 1000)}, 4, "expected a shape"),
    "shape too large": ({"x": entry(shape=[2])}, 4, r"expected 8 bytes of data for F32 \[2\], found '4 bytes'"),
    "shape overflows": ({"x": entry(shape=[2**62, 8])}, 4, "expected .* bytes of data"),
    "shape overflows a float": ({"x": entry(shape=[10**19] * 16)}, 4, "expected .* bytes of data"),
    "shape too small": ({"x": entry(shape=[])}, 8, "4 bytes after its last tensor"),
    "half a byte": ({"x": entry("F4", [1], [0, 0])}, 0, "bytes of data for F4"),
    "offsets reversed": ({"x": entry(offsets=[4, 0])}, 4, r"expected data_offsets \[begin, end\]"),
    "offsets of one": ({"x": entry(offsets=[4])}, 4, "expected data_offsets"),
    "offsets of three": ({"x": entry(offsets=[0, 4, 4])}, 4, "expected data_offsets"),
    "offsets negative": ({"x": entry(offsets=[-4, 0])}, 4, "expected data_offsets"),
    "offsets text": ({"x": entry(offsets="04")}, 4, "expected data_offsets"),
    "truncated": ({"x": entry()}, 3, r"tensor 'x': expected a file of at least \d+ bytes, found \d+ .*truncated"),
    "far outside": ({"x": entry(offsets=[2**60, 2**60 + 4])}, 4, "truncated"),
    "gap": ({"x": entry(), "y": entry(offsets=[5, 9])}, 9, "tensor 'y'.*gap"),
    "gap at the begin": ({"y": entry(offsets=[4, 8])}, 8, "tensor 'y'.*gap"),
    "overlap": ({"x": entry(), "y": entry(offsets=[3, 7])}, 7, "tensor 'y'.*overlap"),
    "same range": ({"x": entry(), "y": entry()}, 4, "tensor 'y'.*overlap"),
    "more data": ({"x": entry()}, 5, "has 1 bytes after its last tensor"),
    "a list": ([1, 2], 0, "header that is a JSON list, not an object"),
    "null": (b"null", 0, "JSON NoneType, not an object"),
    "not JSON": (b"{'x': 1}", 0, "header that is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "header that is not JSON"),
    "nested": (b"[" * 200_000, 0, "nested too deeply"),
    "no header": (b"", 0, "header that is not JSON"),
    "name twice": (b'{"x": 1, "y": 2, "x": 3}', 0, "names 'x' twice"),
    "long number": (b'{"x": ' + b"9" * 5000 + b"}", 0, "a number of 5000 digits"),
    "NaN": (b'{"x": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', 4, "expected a shape"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(path, lie):
    header, data_bytes, message = LIES[lie]
    write_file(path, header, bytes(data_bytes))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value) and "download" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes; a safetensors file has at least 8"),
        (b"\x01\x00", "has 2 bytes"),
        (struct.pack("<Q", 3) + b"{}", "states a header of 3 bytes, but the whole file has 10"),
        (struct.pack("<Q", 2**63) + b"{}", "states a header of 9223372036854775808 bytes; at most 100000000"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
    ],
)
def test_a_file_that_is_something_else(path, content, message):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_a_file_that_can_not_be_read(path):
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"can't be read \(Is a directory\): check"):
        read_header(path)


def test_names_are_quoted_short_and_printable(path):
    write_file(path, {"\ud800\n" + "x" * 10_000: entry(dtype="?")}, bytes(4))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert len(message) < 1000 and message.isprintable()


def mutate(generator, content, header_bytes):
    """One file as an accident, or an attacker, might leave it."""
    content = bytearray(content)
    kind = generator.randrange(5)
    end = 8 + header_bytes
    if kind == 0:  # flip bytes
        for _ in range(generator.randint(1, 8)):
            content[generator.randrange(end)] = generator.randrange(256)
    elif kind == 1:  # cut off
        del content[generator.randrange(len(content)) :]
    elif kind == 2:  # another number in the place of one
        digits = [i for i in range(8, end) if chr(content[i]).isdigit()]
        at = generator.choice(digits)
        number = generator.choice(["-1", "0", "1e999", "18446744073709551616", "9" * 30, "null", '"4"', "[1]", "{}"])
        content[at : at + 1] = number.encode()
        content[:8] = (header_bytes + len(number) - 1).to_bytes(8, "little")
    elif kind == 3:  # bytes moved
        a, b = sorted(generator.randrange(8, end) for _ in range(2))
        content[a:b] = content[a:b][::-1]
    else:  # another length
        length = generator.choice([0, 1, header_bytes - 1, header_bytes + 1, 2**31, 2**63, 2**64 - 1])
        content[:8] = length.to_bytes(8, "little")
    return bytes(content)


def test_a_thousand_mutations(path):
    header, data = header_and_data(TENSORS)
    text = json.dumps(header).encode()
    write_file(path, text, data)
    original = path.read_bytes()
    generator = random.Random(20)
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for _ in range(1000):
            path.write_bytes(mutate(generator, original, len(text)))
            try:
                found = read_header(path)
            except (CheckpointError, UnsupportedModelError):
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                assert all(0 <= t.begin <= t.end <= len(original) for t in found.values())
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcomes["refused"] > 500 and outcomes["read"] > 0  # renamed tensors are fine here, and little else
    assert peak_bytes < 20_000_000
