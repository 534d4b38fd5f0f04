"""The paged key/value cache: one exact-size allocation in host memory, for all layers."""

from __future__ import annotations

import math

from moelens.memory.arena import Arena
from moelens.models.config import ModelConfig
from moelens.ops.interface import KVLayer, Ops


class KVCache:
    """Keys and values of `blocks` blocks per layer, in the storage order of the ops.

    Memory that no block has used yet is reserved but not touched, so it takes no RAM.
    """

    def __init__(self, config: ModelConfig, ops: Ops, *, blocks: int, block_tokens: int) -> None:
        sizes: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
        offset = 0
        for layer in config.layers:
            attention = layer.attention
            shapes = ops.kv_shapes(blocks, attention.kv_heads, attention.head_dim, block_tokens, config.dtype)
            sizes.append((offset, *shapes))
            offset += sum(_aligned(math.prod(shape) * config.dtype.itemsize) for shape in shapes)
        self.nbytes = offset
        self._arena = Arena(offset)
        self.layers: tuple[KVLayer, ...] = tuple(
            KVLayer(
                keys=self._arena.view(begin, config.dtype, keys),
                values=self._arena.view(
                    begin + _aligned(math.prod(keys) * config.dtype.itemsize), config.dtype, values
                ),
                kv_heads=layer.attention.kv_heads,
                head_dim=layer.attention.head_dim,
                block_tokens=block_tokens,
            )
            for layer, (begin, keys, values) in zip(config.layers, sizes, strict=True)
        )


def kv_block_bytes(config: ModelConfig, ops: Ops, block_tokens: int) -> int:
    """Bytes that one block takes over all layers."""
    total = 0
    for layer in config.layers:
        attention = layer.attention
        shapes = ops.kv_shapes(1, attention.kv_heads, attention.head_dim, block_tokens, config.dtype)
        total += sum(math.prod(shape) * config.dtype.itemsize for shape in shapes)
    return total


def _aligned(nbytes: int) -> int:
    """`nbytes` rounded up to a cache line."""
    return -(-nbytes // 64) * 64
