"""attention and write_kv of every instruction set against float64, and their independence of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens import _cpu
from moelens.errors import ConfigError, UnsupportedModelError
from moelens.ops.interface import AttentionRows, KVLayer
from moelens.ops.native import NativeOps
from moelens.ops.reference import ReferenceOps

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


@cache
def native_ops(isa: str, threads: int) -> NativeOps:
    return NativeOps(threads, isa)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def ints(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclass(frozen=True)
class Shape:
    query_heads: int = 8
    kv_heads: int = 2
    dim: int = 64
    block_tokens: int = 32


class Context:
    """Requests of some lengths with random keys and values, in shuffled blocks of a cache larger than they need."""

    def __init__(self, shape: Shape, lengths: list[int], dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shape, self.lengths, self.dtype = shape, lengths, dtype
        heads = (sum(lengths), shape.kv_heads, shape.dim)
        self.q = torch.randn(sum(lengths), shape.query_heads, shape.dim, generator=generator).to(dtype)
        self.k = torch.randn(heads, generator=generator).to(dtype)
        self.v = torch.randn(heads, generator=generator).to(dtype)
        counts = [-(-length // shape.block_tokens) for length in lengths]
        self.blocks = sum(counts) + 3
        ids = torch.randperm(self.blocks, generator=generator).int()[: sum(counts)].split(counts)
        self.block_ids = torch.full((len(lengths), max(counts) + 1), -7, dtype=torch.int32)
        for row, own in zip(self.block_ids, ids, strict=True):
            row[: len(own)] = own

    def slots(self, request: int, begin: int, end: int) -> torch.Tensor:
        positions = torch.arange(begin, end)
        size = self.shape.block_tokens
        return (self.block_ids[request][positions // size] * size + positions % size).int()

    def tokens(self, request: int, begin: int, end: int) -> slice:
        first = sum(self.lengths[:request])
        return slice(first + begin, first + end)

    def cache(self, ops: NativeOps | ReferenceOps, dtype: torch.dtype, fill: float = 0.0) -> KVLayer:
        """A cache of the ops with all tokens written and `fill` in every slot that holds none."""
        shape = self.shape
        shapes = ops.kv_shapes(self.blocks, shape.kv_heads, shape.dim, shape.block_tokens, dtype)
        keys, values = (torch.zeros(size, dtype=dtype) for size in shapes)
        layer = KVLayer(keys, values, shape.kv_heads, shape.dim, shape.block_tokens)
        everywhere = torch.arange(self.blocks * shape.block_tokens, dtype=torch.int32)
        filling = torch.full((len(everywhere), shape.kv_heads, shape.dim), fill, dtype=dtype)
        ops.write_kv(filling, filling, layer, everywhere)
        for request, length in enumerate(self.lengths):
            own = self.tokens(request, 0, length)
            ops.write_kv(self.k[own].to(dtype), self.v[own].to(dtype), layer, self.slots(request, 0, length))
        return layer

    def rows(self, parts: list[tuple[int, int, int]]) -> tuple[torch.Tensor, AttentionRows]:
        """The queries of parts (request, first position, last + 1) and what they attend to."""
        q = torch.cat([self.q[self.tokens(*part)] for part in parts])
        ends = torch.tensor([end - begin for _, begin, end in parts]).cumsum(0)
        starts = torch.cat([torch.zeros(1), ends]).int()
        requests = [request for request, _, _ in parts]
        return q, AttentionRows(starts, ints([begin for _, begin, _ in parts]), self.block_ids[requests].contiguous())


def attend(
    ops: NativeOps, context: Context, layer: KVLayer, parts: list[tuple[int, int, int]], window: int | None
) -> torch.Tensor:
    q, rows = context.rows(parts)
    return ops.attention(q, layer, rows, context.shape.dim**-0.5, window)


def expect(context: Context, parts: list[tuple[int, int, int]], window: int | None) -> torch.Tensor:
    ops = ReferenceOps()
    q, rows = context.rows(parts)
    layer = context.cache(ops, torch.float64)
    return ops.attention(q.double(), layer, rows, context.shape.dim**-0.5, window)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(query_heads=3, kv_heads=3, dim=32),
        Shape(query_heads=2, kv_heads=1, dim=96, block_tokens=64),
        Shape(query_heads=12, kv_heads=2, dim=80),
        Shape(query_heads=16, kv_heads=1, dim=128, block_tokens=96),
        Shape(query_heads=4, kv_heads=4, dim=256),
        Shape(query_heads=4, kv_heads=2, dim=6),
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [None, 1, 40, 300])
def test_attention_is_softmax_over_visible_keys(isa: str, dtype: torch.dtype, shape: Shape, window: int | None) -> None:
    context = Context(shape, [1, 33, 64, 290, 7, 531], dtype, seed=1)
    # decode rows, whole prompts, and prompts of which a part was cached
    parts = [(0, 0, 1), (1, 32, 33), (2, 63, 64), (3, 0, 290), (4, 2, 7), (5, 500, 531)]
    ops = native_ops(isa, 2)
    out = attend(ops, context, context.cache(ops, dtype), parts, window)
    expected = expect(context, parts, window)
    assert relative_error(out, expected) < TOLERANCE[dtype]
    assert (out.double() - expected).abs().max() < 20 * TOLERANCE[dtype]


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [Shape(), Shape(query_heads=12, kv_heads=2, dim=80)], ids=str)
def test_what_is_attended_may_take_the_place_of_the_queries(isa: str, dtype: torch.dtype, shape: Shape) -> None:
    context, parts = (
        Context(shape, [33, 64, 290, 531], dtype, seed=1),
        [(0, 32, 33), (1, 63, 64), (2, 0, 290), (3, 500, 531)],
    )
    ops = native_ops(isa, 2)
    layer = context.cache(ops, dtype)
    apart = attend(ops, context, layer, parts, None)
    q, rows = context.rows(parts)
    q = q.to(dtype, copy=True)
    assert ops.attention(q, layer, rows, shape.dim**-0.5, None, out=q) is q
    assert torch.equal(q, apart)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_of_attention_is_the_same_bits_in_every_batch(isa: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    kv_heads = data.draw(st.integers(1, 3))
    shape = Shape(
        kv_heads * data.draw(st.sampled_from([1, 2, 3, 4, 8, 13, 16])),
        kv_heads,
        data.draw(st.sampled_from([2, 32, 64, 80])),
        data.draw(st.sampled_from([32, 64, 96])),
    )
    length = data.draw(st.integers(1, 600))
    seed, window = data.draw(st.integers(0, 1000)), data.draw(st.none() | st.integers(1, 400))
    alone = Context(shape, [length], dtype, seed)
    one = native_ops(isa, 1)
    whole = attend(one, alone, alone.cache(one, dtype), [(0, 0, length)], window)

    # the same request in other blocks, beside other requests, cut at random, with garbage in all other slots
    others = data.draw(st.lists(st.integers(1, 70), max_size=3))
    context = Context(shape, [*others, length], dtype, seed + 1)
    own = context.tokens(len(others), 0, length)
    context.q[own], context.k[own], context.v[own] = alone.q, alone.k, alone.v
    ops = native_ops(isa, data.draw(st.integers(1, 3)))
    layer = context.cache(ops, dtype, fill=data.draw(st.sampled_from([math.nan, math.inf, 1e30])))
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=4))})
    begin = 0
    for end in cuts[1:]:
        parts = [*((i, n - 1, n) for i, n in enumerate(others)), (len(others), begin, end)]
        out = attend(ops, context, layer, parts, window)[len(others) :]
        assert torch.equal(out, whole[begin:end])
        position = data.draw(st.integers(begin, end - 1))
        decoded = attend(ops, context, layer, [(len(others), position, position + 1)], window)
        assert torch.equal(decoded[0], whole[position])
        begin = end


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_slots_that_hold_no_token_are_not_read(isa: str, dtype: torch.dtype) -> None:
    ops = native_ops(isa, 1)
    for length in (1, 2, 31, 32, 33, 257):
        context = Context(Shape(), [length], dtype, seed=length)
        clean = attend(ops, context, context.cache(ops, dtype), [(0, 0, length)], None)
        dirty = attend(ops, context, context.cache(ops, dtype, fill=math.nan), [(0, 0, length)], None)
        assert torch.equal(clean, dirty)
        assert torch.isfinite(clean).all()


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_reaches_the_rows_that_see_it_and_no_other_request(isa: str, dtype: torch.dtype) -> None:
    ops = native_ops(isa, 2)
    context = Context(Shape(), [100, 100], dtype, seed=3)
    parts = [(0, 99, 100), (1, 99, 100)]
    clean = attend(ops, context, context.cache(ops, dtype), parts, None)
    for broken in (context.k, context.v, context.q):
        kept = broken[context.tokens(0, 99, 100)].clone()
        broken[context.tokens(0, 99, 100)] = math.nan
        out = attend(ops, context, context.cache(ops, dtype), parts, None)
        assert out[0].isnan().all()
        assert torch.equal(out[1], clean[1])
        broken[context.tokens(0, 99, 100)] = kept


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gain", [30.0, 3000.0])
def test_sharp_and_rising_scores_stay_exact(isa: str, dtype: torch.dtype, gain: float) -> None:
    ops = native_ops(isa, 1)
    context = Context(Shape(query_heads=1, kv_heads=1, dim=32), [700], dtype, seed=4)
    ramp = torch.linspace(-1, 1, 700)[:, None, None]
    context.k.copy_((ramp * torch.ones(32)).to(dtype))
    context.q.fill_(gain / 32**0.5)
    out = attend(ops, context, context.cache(ops, dtype), [(0, 0, 700)], None)
    assert relative_error(out, expect(context, [(0, 0, 700)], None)) < (2e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_give_no_rows(isa: str, dtype: torch.dtype) -> None:
    ops = native_ops(isa, 2)
    context = Context(Shape(), [40], dtype, seed=5)
    layer = context.cache(ops, dtype)
    nothing = context.q[:0]
    empty = AttentionRows(ints([0]), ints([]), torch.empty(0, 2, dtype=torch.int32))
    assert ops.attention(nothing, layer, empty, 1.0, None).shape == (0, 8, 64)
    rows = AttentionRows(ints([0, 0, 1]), ints([9, 39]), context.block_ids.repeat(2, 1))  # the first has none
    out = ops.attention(context.q[39:40], layer, rows, 0.125, None)
    assert torch.equal(out, attend(ops, context, layer, [(0, 39, 40)], None))
    ops.write_kv(context.k[:0], context.v[:0], layer, ints([]))


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "block_tokens"), [(64, 32), (80, 64), (6, 96)])
def test_storage_is_tiles_of_32_keys(isa: str, dtype: torch.dtype, dim: int, block_tokens: int) -> None:
    ops, reference = native_ops(isa, 2), ReferenceOps()
    context = Context(Shape(kv_heads=3, dim=dim, block_tokens=block_tokens), [50, 200], dtype, seed=6)
    found, natural = context.cache(ops, dtype), context.cache(reference, dtype)
    depth = 1 if dtype == torch.float32 else 2
    keys = natural.keys.unflatten(2, (-1, 32)).unflatten(4, (-1, depth)).transpose(3, 4)  # … D/2, 32 keys, 2
    padded = torch.nn.functional.pad(natural.values, (0, -dim % 32))
    values = padded.unflatten(2, (-1, 32 // depth, depth)).unflatten(5, (-1, 32)).permute(0, 1, 2, 5, 3, 6, 4)
    assert torch.equal(found.keys, keys.reshape(found.keys.shape))
    assert torch.equal(found.values, values.reshape(found.values.shape))


def test_wrong_shapes_of_a_cache_are_refused() -> None:
    ops = native_ops(_cpu.best_isa(), 1)
    with pytest.raises(ConfigError, match="block_tokens must be a multiple of 32, got 48"):
        ops.kv_shapes(1, 1, 64, 48, torch.float32)
    with pytest.raises(UnsupportedModelError, match=r"head_dim 7 is odd.*use dtype float32"):
        ops.kv_shapes(1, 1, 7, 32, torch.bfloat16)
    assert ops.kv_shapes(4, 2, 7, 64, torch.float32) == ((4, 2, 2, 7, 32), (4, 2, 2, 1, 32, 32))


def test_wrong_arguments_of_attention_are_named() -> None:
    ops = native_ops(_cpu.best_isa(), 1)
    context = Context(Shape(), [40], torch.float32, seed=7)
    layer, q, blocks = context.cache(ops, torch.float32), context.q[:2], context.block_ids

    def refuse(message: str, q: torch.Tensor = q, layer: KVLayer = layer, scale: float = 1.0, **rows: object) -> None:
        own = {"starts": [0, 2], "cached": [38], "block_ids": blocks.tolist()} | rows
        with pytest.raises(ValueError, match=message):
            ops.attention(q, layer, AttentionRows(*(ints(own[name]) for name in own)), scale, None)

    refuse("attention: Q must be a multiple of K = 2, found 3", q=q[:, :3].contiguous())
    refuse(r"attention: keys must be \[N, K, 1, 32, 32\]", q=q[..., :32].contiguous())
    refuse("attention: scale must be positive, found 0", scale=0.0)
    refuse("attention: starts must go from 0 to T = 2, found 0 to 3", starts=[0, 3])
    refuse(
        "attention: starts must not fall, but the rows of request 1",
        starts=[0, 3, 2],
        cached=[0, 0],
        block_ids=[[0]] * 2,
    )
    refuse(r"attention: starts must be \[2\], found \[3\]", starts=[0, 1, 2])
    refuse("attention: cached must not be negative, found -1 of request 0", cached=[-1])
    refuse("attention: block_ids has 3 columns, but the 97 tokens of request 0 take 4", cached=[95])
    refuse(r"attention: block_ids must be in \[0, N\) = \[0, 5\), found 5 of request 0", block_ids=[[0, 5]])
    with pytest.raises(ValueError, match="attention: window must be at least 1, found 0"):
        attend(ops, context, layer, [(0, 0, 1)], 0)
    with pytest.raises(TypeError, match=r"attention: keys must be bfloat16, found torch\.float32"):
        ops.attention(q.bfloat16(), layer, context.rows([(0, 0, 2)])[1], 1.0, None)


def test_wrong_arguments_of_write_kv_are_named() -> None:
    ops = native_ops(_cpu.best_isa(), 1)
    context = Context(Shape(), [40], torch.float32, seed=8)
    layer, k = context.cache(ops, torch.float32), context.k[:2]
    with pytest.raises(ValueError, match=r"write_kv: v must be \[T, K, D\] = \[2, 2, 64\], found \[3, 2, 64\]"):
        ops.write_kv(k, context.v[:3], layer, ints([0, 1]))
    with pytest.raises(ValueError, match=r"write_kv: slots must be in \[0, 160\), found 160 at 1"):
        ops.write_kv(k, k, layer, ints([0, 160]))
    with pytest.raises(ValueError, match="write_kv: block_tokens must be a multiple of 32, found 16"):
        ops.write_kv(k, k, KVLayer(layer.keys, layer.values, 2, 64, 16), ints([0, 1]))
    with pytest.raises(TypeError, match=r"write_kv: v must be float32, found torch\.bfloat16"):
        ops.write_kv(k, k.bfloat16(), layer, ints([0, 1]))
