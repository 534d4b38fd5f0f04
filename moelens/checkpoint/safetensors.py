"""Where each tensor of a .safetensors file lies: its header, read with distrust.

The format: 8 bytes of header length (little-endian), a JSON object {name: {dtype, shape, data_offsets}}, then the data,
which the tensors cover without gap or overlap. The `safetensors` package maps the data but does not tell offsets, and
we read ranges of tensors straight to where they belong.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moelens.checkpoint.faults import damaged, damaged_tensor, quote
from moelens.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors package
_MAX_RANK = 16
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
}
_WEIGHTS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `dtype` by the format's name, data in bytes [begin, end) of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The torch dtype of plain float weights; None for what weights can't be read from."""
        return _WEIGHTS.get(self.dtype)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file `path`, by name. Raises CheckpointError when header and file do not agree."""
    try:
        with path.open("rb") as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            header_bytes = _header_bytes(path, prefix, file_bytes)
            text = file.read(header_bytes)
    except OSError as error:
        raise damaged(
            path, f"can't be read ({error.strerror or error})", "check the disk and the file's permissions"
        ) from error
    if len(text) != header_bytes:
        raise damaged(path, f"ends inside its header: {len(text)} of {header_bytes} bytes are there")
    tensors = [
        _stored_tensor(path, name, fields, 8 + header_bytes)
        for name, fields in _parse(path, text).items()
        if name != "__metadata__"
    ]
    _check_cover(path, tensors, 8 + header_bytes, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def _header_bytes(path: Path, prefix: bytes, file_bytes: int) -> int:
    """The header's length, checked against the file's."""
    if prefix == b"version ":
        raise damaged(path, "is a Git LFS pointer, not the data", "run `git lfs pull` in the checkpoint's folder")
    if len(prefix) < 8:
        raise damaged(path, f"has {file_bytes} bytes; a safetensors file has at least 8")
    header_bytes = int.from_bytes(prefix, "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise damaged(path, f"states a header of {header_bytes} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if 8 + header_bytes > file_bytes:
        raise damaged(path, f"states a header of {header_bytes} bytes, but the whole file has {file_bytes}")
    return header_bytes


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    """The header as JSON, with no name given twice and no number longer than a 64-bit one."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in pairs:
            if name in fields:
                raise damaged(path, f"names {quote(name)} twice in its header")
            fields[name] = value
        return fields

    def bounded(digits: str) -> int:
        if len(digits) > 20:
            raise damaged(path, f"has a number of {len(digits)} digits in its header")
        return int(digits)

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_int=bounded)
    except CheckpointError:
        raise
    except RecursionError:
        raise damaged(path, "has a header nested too deeply") from None
    except ValueError as error:
        raise damaged(path, f"has a header that is not JSON ({quote(str(error))})") from None
    if not isinstance(header, dict):
        raise damaged(path, f"has a header that is a JSON {type(header).__name__}, not an object")
    return header


def _stored_tensor(path: Path, name: str, fields: object, data_begin: int) -> StoredTensor:
    """One entry of the header, each field checked by itself and its size against its shape."""

    def wrong(expected: str, found: object) -> CheckpointError:
        return damaged_tensor(path, name, expected, quote(str(found)))

    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("an object of dtype, shape and data_offsets", fields)
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise wrong(f"a dtype among {', '.join(_BITS)}", dtype)
    if not _are_sizes(shape):
        raise wrong("a shape of non-negative whole numbers", shape)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong("data_offsets [begin, end] with begin <= end", offsets)
    bits = math.prod(shape) * _BITS[dtype]
    begin, end = offsets
    if bits % 8 or bits // 8 != end - begin:
        raise wrong(f"{bits // 8} bytes of data for {dtype} {shape}", f"{end - begin} bytes")
    return StoredTensor(path, name, dtype, tuple(shape), data_begin + begin, data_begin + end)


def _are_sizes(values: object) -> bool:
    """Whether `values` is a short list of non-negative integers; JSON's true and false are no integers."""
    return isinstance(values, list) and len(values) <= _MAX_RANK and all(type(n) is int and n >= 0 for n in values)


def _check_cover(path: Path, tensors: list[StoredTensor], data_begin: int, file_bytes: int) -> None:
    """That the tensors cover the data exactly, as the format demands."""
    position = data_begin
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.end > file_bytes:
            expected = f"a file of at least {tensor.end} bytes"
            raise damaged_tensor(path, tensor.name, expected, f"{file_bytes} bytes, so the file is truncated")
        if tensor.begin != position:
            fault = "overlap with another tensor" if tensor.begin < position else "leave a gap before them"
            found = f"data at byte {tensor.begin}, which would {fault}"
            raise damaged_tensor(path, tensor.name, f"its data to begin at byte {position}", found)
        position = tensor.end
    if position != file_bytes:
        raise damaged(path, f"has {file_bytes - position} bytes after its last tensor")
