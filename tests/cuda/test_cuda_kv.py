"""Keys and values between rows and the host's cache, and the attention of a device over both."""

from __future__ import annotations

import pytest
import torch
from target import Target, relative_error

from moelens.errors import UnsupportedModelError
from moelens.ops.interface import AttentionRows, KVLayer
from moelens.ops.native import NativeOps
from moelens.ops.prefill import attend_rows, attend_rows_at_once, has_varlen_attention
from moelens.ops.reference import ReferenceOps

BF16 = torch.bfloat16


def empty_cache(ops: NativeOps | ReferenceOps, blocks: int, kv_heads: int, head_dim: int, block_tokens: int) -> KVLayer:
    shapes = ops.kv_shapes(blocks, kv_heads, head_dim, block_tokens, BF16)
    keys, values = (torch.zeros(shape, dtype=BF16) for shape in shapes)
    return KVLayer(keys, values, kv_heads, head_dim, block_tokens)


def put(target: Target, cache: KVLayer) -> KVLayer:
    return KVLayer(target.put(cache.keys), target.put(cache.values), cache.kv_heads, cache.head_dim, cache.block_tokens)


@pytest.mark.parametrize(("kv_heads", "head_dim", "block_tokens"), [(2, 64, 32), (1, 34, 64), (3, 8, 32)])
def test_blocks_are_the_hosts_and_read_back(target: Target, kv_heads: int, head_dim: int, block_tokens: int) -> None:
    tokens, blocks = 45, 6
    k, v = (torch.randn(tokens, kv_heads, head_dim).to(BF16) for _ in range(2))
    slots = torch.randperm(blocks * block_tokens)[:tokens].int()
    host = NativeOps(1)
    wanted = empty_cache(host, blocks, kv_heads, head_dim, block_tokens)
    host.write_kv(k, v, wanted, slots)
    found = put(target, empty_cache(host, blocks, kv_heads, head_dim, block_tokens))
    target.write_kv(target.put(k), target.put(v), found, target.put(slots))
    assert torch.equal(found.keys.cpu(), wanted.keys)
    assert torch.equal(found.values.cpu(), wanted.values)
    read_k, read_v = target.read_kv(found, target.put(slots))
    assert torch.equal(read_k.cpu(), k) and torch.equal(read_v.cpu(), v)


@pytest.mark.parametrize("window", [None, 5])
def test_attention_over_the_cache(target: Target, window: int | None) -> None:
    heads, kv_heads, head_dim, block_tokens = 4, 2, 32, 32
    cached, lengths = [0, 40, 3, 31], [37, 5, 1, 33]
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    block_ids = torch.randperm(12)[: 4 * 3].view(4, 3).int()
    rows = AttentionRows(starts, torch.tensor(cached, dtype=torch.int32), block_ids)
    q = torch.randn(sum(lengths), heads, head_dim).to(BF16)
    reference, host = ReferenceOps(), NativeOps(1)
    plain = empty_cache(reference, 12, kv_heads, head_dim, block_tokens)
    packed = empty_cache(host, 12, kv_heads, head_dim, block_tokens)
    k, v = (torch.randn(12 * block_tokens, kv_heads, head_dim).to(BF16) for _ in range(2))
    slots = torch.arange(12 * block_tokens).int()
    reference.write_kv(k, v, plain, slots)
    host.write_kv(k, v, packed, slots)
    expected = reference.attention(q.double(), plain, rows, 0.2, window)
    out = target.attention(target.put(q), put(target, packed), rows, 0.2, window)
    assert relative_error(out, expected) < 4e-3


def test_a_requests_rows_are_the_same_bits_beside_others(target: Target) -> None:
    q, k, v = (target.put(torch.randn(60, heads, 32).to(BF16)) for heads in (4, 2, 2))
    together = attend_rows(q, k, v, [0, 20, 60], [0, 20, 60], 0.3, None)
    assert torch.equal(together[20:], attend_rows(q[20:], k[20:], v[20:], [0, 40], [0, 40], 0.3, None))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 7])
def test_varlen_attention_is_the_same(window: int | None) -> None:
    if not has_varlen_attention():
        pytest.skip("this torch has no varlen attention with grouped queries")
    q, k, v = (torch.randn(rows, heads, 64, device="cuda").to(BF16) for rows, heads in ((60, 8), (90, 2), (90, 2)))
    queries, keys = [0, 20, 60], [0, 50, 90]  # the first request has 30 keys cached
    expected = attend_rows(q.double(), k.double(), v.double(), queries, keys, 0.1, window)
    assert relative_error(attend_rows_at_once(q, k, v, queries, keys, 0.1, window), expected.cpu()) < 4e-3


def test_float32_is_refused(target: Target) -> None:
    with pytest.raises(UnsupportedModelError, match="use dtype='bfloat16'"):
        target.matrix_shape(8, 8, torch.float32)
