"""A small key/value cache of one layer, on the device, for prompts that see no keys but their own."""

from __future__ import annotations

import itertools
import math

import torch

from moelens.memory.arena import align
from moelens.memory.layout import ENTRY_ALIGNMENT
from moelens.memory.stores import Store
from moelens.models.config import GQA, ModelConfig
from moelens.ops.interface import AttentionRows, KVLayer, Ops

BLOCK_TOKENS = 32


class ScratchCache:
    """Room for `step_tokens` tokens of one request; of more requests, as many at a time as fit.

    Rows attend by the same op as over the host's cache, so they give the same bits.
    """

    def __init__(self, config: ModelConfig, ops: Ops, step_tokens: int) -> None:
        self._ops = ops
        self._blocks = -(-step_tokens // BLOCK_TOKENS)
        self._dtype = config.dtype
        self._shapes = {layer.attention: self._kv_shapes(layer.attention) for layer in config.layers}
        self.nbytes = max(sum(map(self._room, shapes)) for shapes in self._shapes.values())
        self._store: Store
        self._begin = 0

    def place(self, store: Store, begin: int) -> None:
        """Lie at byte `begin` of `store`, whose bytes there are zero."""
        self._store, self._begin = store, begin

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rows: AttentionRows,
        attention: GQA,
    ) -> torch.Tensor:
        """q [T, Q, D], k and v [T, K, D] of the requests in `rows`, of which nothing is cached -> [T, Q, D]."""
        keys, values = self._shapes[attention]
        second = self._begin + self._room(keys)
        cache = KVLayer(
            self._store.view(self._begin, self._dtype, keys),
            self._store.view(second, self._dtype, values),
            *(attention.kv_heads, attention.head_dim, BLOCK_TOKENS),
        )
        starts, results = rows.starts.tolist(), []
        begin = 0
        while begin + 1 < len(starts):
            end = self._group(starts, begin)
            own = slice(starts[begin], starts[end])
            group, slots = _laid_out(starts[begin : end + 1])
            self._ops.write_kv(k[own], v[own], cache, slots.to(k.device))
            results.append(self._ops.attention(q[own], cache, group, attention.scale, attention.window))
            begin = end
        return results[0] if len(results) == 1 else torch.cat(results)

    def _group(self, starts: list[int], begin: int) -> int:
        """The end of the requests from `begin` on that fit at once."""
        used, end = 0, begin
        while end + 1 < len(starts):
            used += -(-(starts[end + 1] - starts[end]) // BLOCK_TOKENS)
            if used > self._blocks:
                break
            end += 1
        assert end > begin, "a request has more rows than a step"
        return end

    def _kv_shapes(self, attention: GQA) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._ops.kv_shapes(self._blocks, attention.kv_heads, attention.head_dim, BLOCK_TOKENS, self._dtype)

    def _room(self, shape: tuple[int, ...]) -> int:
        return align(math.prod(shape) * self._dtype.itemsize, ENTRY_ALIGNMENT)


def _laid_out(starts: list[int]) -> tuple[AttentionRows, torch.Tensor]:
    """Requests with these row starts, in blocks one after the other; and the slots of their tokens."""
    counts = [end - begin for begin, end in itertools.pairwise(starts)]
    columns = max(-(-count // BLOCK_TOKENS) for count in counts)
    block_ids = torch.zeros((len(counts), columns), dtype=torch.int32)
    slots: list[torch.Tensor] = []
    used = 0
    for request, count in enumerate(counts):
        blocks = -(-count // BLOCK_TOKENS)
        block_ids[request, :blocks] = torch.arange(used, used + blocks, dtype=torch.int32)
        slots.append(torch.arange(used * BLOCK_TOKENS, used * BLOCK_TOKENS + count, dtype=torch.int32))
        used += blocks
    first = torch.tensor([start - starts[0] for start in starts], dtype=torch.int32)
    return AttentionRows(first, torch.zeros(len(counts), dtype=torch.int32), block_ids), torch.cat(slots)
