"""Writes a checkpoint's files: JSON, and safetensors in shards with an index, streamed one shard at a time."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np


def write_json(value: object, path: Path, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def encode(array: np.ndarray, dtype: str) -> tuple[str, bytes]:
    """The safetensors name of `dtype` (bf16, fp32, fp16) and the array's bytes in it."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    if dtype == "fp32":
        return "F32", array.tobytes()
    if dtype == "fp16":
        return "F16", array.astype(np.float16).tobytes()
    assert dtype == "bf16", dtype
    bits = array.view(np.uint32)
    return "BF16", ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()  # to nearest, ties to even


class ShardWriter:
    """Tensors in, shards of at most `shard_bytes` out; `sha256` digests all names and bytes in order."""

    def __init__(self, folder: Path, dtype: str, shard_bytes: int) -> None:
        self._folder, self._dtype, self._shard_bytes = folder, dtype, shard_bytes
        self._waiting: list[tuple[str, str, list[int], bytes]] = []
        self._waiting_bytes = 0
        self._shards: list[list[str]] = []
        self._digest = hashlib.sha256()
        self.total_bytes = 0

    def add(self, name: str, array: np.ndarray) -> None:
        dtype, data = encode(array, self._dtype)
        if self._waiting and self._waiting_bytes + len(data) > self._shard_bytes:
            self._write_shard()
        self._waiting.append((name, dtype, list(array.shape), data))
        self._waiting_bytes += len(data)
        self.total_bytes += len(data)
        self._digest.update(name.encode())
        self._digest.update(data)

    def close(self) -> str:
        """Write what waits, give the shards their final names, write the index; returns the SHA-256 of the tensors."""
        if self._waiting:
            self._write_shard()
        count = len(self._shards)
        weight_map = {}
        for i, names in enumerate(self._shards):
            final = "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            os.replace(self._folder / f"part-{i}.tmp", self._folder / final)
            weight_map.update(dict.fromkeys(names, final))
        if count > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
            write_json(index, self._folder / "model.safetensors.index.json")
        return self._digest.hexdigest()

    def _write_shard(self) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, dtype, shape, data in self._waiting:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
            offset += len(data)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(self._folder / f"part-{len(self._shards)}.tmp", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for *_, data in self._waiting:
                file.write(data)
        self._shards.append([name for name, *_ in self._waiting])
        self._waiting, self._waiting_bytes = [], 0
