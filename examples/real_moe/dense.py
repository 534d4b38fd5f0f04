"""The dense model as float32 arrays: reads a GGUF file of the Llama architecture and undoes its conventions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

Array = np.ndarray


@dataclass(frozen=True)
class DenseLayer:
    """One layer: matrices are [rows out, columns in]."""

    q: Array
    k: Array
    v: Array
    o: Array
    input_norm: Array
    post_attention_norm: Array
    gate: Array
    up: Array
    down: Array


class Dense:
    """The model's sizes, its embedding and final norm, and its layers one at a time."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        self.layers: int = self.metadata["llama.block_count"]
        self.hidden: int = self.metadata["llama.embedding_length"]
        self.width: int = self.metadata["llama.feed_forward_length"]
        self.query_heads: int = self.metadata["llama.attention.head_count"]
        self.kv_heads: int = self.metadata["llama.attention.head_count_kv"]
        self.head_dim = self.hidden // self.query_heads
        self.vocab: int = self.metadata["llama.vocab_size"]
        self.rope_theta = float(self.metadata["llama.rope.freq_base"])
        self.max_context: int = self.metadata["llama.context_length"]
        self.eps = 1e-5
        self.embedding = self._read("token_embd.weight")
        self.final_norm = self._read("output_norm.weight")

    def layer(self, index: int) -> DenseLayer:
        prefix = f"blk.{index}."
        return DenseLayer(
            q=_half_rotated(self._read(prefix + "attn_q.weight"), self.query_heads),
            k=_half_rotated(self._read(prefix + "attn_k.weight"), self.kv_heads),
            v=self._read(prefix + "attn_v.weight"),
            o=self._read(prefix + "attn_output.weight"),
            input_norm=self._read(prefix + "attn_norm.weight"),
            post_attention_norm=self._read(prefix + "ffn_norm.weight"),
            gate=self._read(prefix + "ffn_gate.weight"),
            up=self._read(prefix + "ffn_up.weight"),
            down=self._read(prefix + "ffn_down.weight"),
        )

    def _read(self, name: str) -> Array:
        tensor = self._tensors[name]
        shape = tuple(reversed([int(size) for size in tensor.shape]))
        return np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type).reshape(shape), dtype=np.float32)


def _half_rotated(weight: Array, heads: int) -> Array:
    """GGUF stores q and k rows for rotary embedding of adjacent pairs; the hub's format rotates halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(weight.shape)
