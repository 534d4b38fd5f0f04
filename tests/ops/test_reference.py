"""The definition of the ops against torch's own functions and against loops written from the interface's words."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from moelens.ops.interface import (
    Activation,
    AttentionRows,
    ExpertMatrices,
    KVLayer,
    Matrix,
    Ops,
    QKNorm,
    Rotation,
    Routing,
    SamplingRows,
    Scoring,
)
from moelens.ops.reference import ReferenceOps

OPS: Ops = ReferenceOps()


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def matrix(data: torch.Tensor) -> Matrix:
    return Matrix(data, *data.shape)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


# --- storage ----------------------------------------------------------------------------------------------------------
def test_packed_storage_is_the_logical_matrix(random: torch.Generator) -> None:
    source = torch.randn(96, 5, generator=random)
    storage = torch.full(OPS.matrix_shape(96, 5, torch.float32), float("nan"))
    OPS.pack_matrix(source[64:], storage, first_row=64)
    OPS.pack_matrix(source[:64], storage)
    assert torch.equal(storage, source)

    gate, up, down = torch.randn(3, 4, 6, generator=random)
    gate_up = torch.full(OPS.gate_up_shape(4, 6, torch.float32), float("nan"))
    OPS.pack_gate_up(gate, up, gate_up)
    assert torch.equal(gate_up, torch.stack([gate, up]))
    stored = torch.full(OPS.down_shape(4, 6, torch.float32), float("nan"))
    OPS.pack_down(down, stored)
    assert torch.equal(stored, down)


# --- row-wise ---------------------------------------------------------------------------------------------------------
def test_embed_looks_rows_up(random: torch.Generator) -> None:
    table = torch.randn(5, 3, generator=random)
    assert torch.equal(OPS.embed(table, int32(4, 0, 4)), table[[4, 0, 4]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_equal_torch(random: torch.Generator, dtype: torch.dtype) -> None:
    x = 3 * torch.randn(4, 24, generator=random, dtype=dtype) + 1
    weight = torch.randn(24, generator=random, dtype=dtype)
    torch.testing.assert_close(OPS.rms_norm(x, weight, 1e-3), torch.nn.functional.rms_norm(x, (24,), weight, 1e-3))
    torch.testing.assert_close(
        OPS.layer_norm(x, weight, 1e-3), torch.nn.functional.layer_norm(x, (24,), weight, eps=1e-3)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_round_once_to_the_dtype_of_the_weight(random: torch.Generator, dtype: torch.dtype) -> None:
    x = torch.randn(64, 48, generator=random).to(dtype)
    weight = torch.randn(48, generator=random).bfloat16()
    for norm in (OPS.rms_norm, OPS.layer_norm):
        exact = norm(x.double(), weight, 1e-6)
        assert exact.dtype == torch.float64
        assert torch.equal(norm(x, weight, 1e-6), exact.float().bfloat16())


def test_linear_adds_bias_scale_and_residual(random: torch.Generator) -> None:
    x, w = torch.randn(3, 8, generator=random), torch.randn(5, 8, generator=random)
    bias, residual = torch.randn(5, generator=random), torch.randn(3, 5, generator=random)
    y = OPS.linear(x, matrix(w), bias=bias, residual=residual, scale=0.5)
    torch.testing.assert_close(y, residual + 0.5 * (x @ w.T + bias))


def test_linear_rounds_once(random: torch.Generator) -> None:
    x, w = torch.randn(9, 64, generator=random).bfloat16(), torch.randn(33, 64, generator=random).bfloat16()
    residual = torch.randn(9, 33, generator=random).bfloat16()
    exact = OPS.linear(x.double(), matrix(w), residual=residual, scale=0.3)
    assert exact.dtype == torch.float64
    rounded = OPS.linear(x, matrix(w), residual=residual, scale=0.3)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.float().bfloat16())
    assert OPS.linear(x, matrix(w), dtype=torch.float32).dtype == torch.float32


def test_a_float32_residual_makes_a_float32_result(random: torch.Generator) -> None:
    x, residual = torch.randn(9, 16, generator=random).bfloat16(), torch.randn(9, 16, generator=random)
    weight = torch.randn(2, 2, 16, 16, generator=random).bfloat16()
    y = OPS.linear(x, matrix(weight[0, 0]), residual=residual)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, residual + x.float() @ weight[0, 0].float().T)
    experts = ExpertMatrices(weight, weight[:, 0], 2, 16, 16)
    ids, scores = torch.zeros(9, 1, dtype=torch.int32), torch.ones(9, 1)
    summed = OPS.experts(x, experts, ids, scores, Activation.SILU, residual=residual)
    alone = OPS.experts(x, experts, ids, scores, Activation.SILU, residual=torch.zeros(9, 16))
    assert summed.dtype == torch.float32
    torch.testing.assert_close(summed, residual + alone)


def test_split_qkv_turns_pairs_and_leaves_the_rest(random: torch.Generator) -> None:
    joined = torch.randn(2, 5 * 10, generator=random, dtype=torch.float64)  # 3 query heads, 1 key, 1 value of 10
    rotation, positions = Rotation(torch.tensor([1.0, 0.1, 0.01]), 1.25), int32(0, 1000)
    q, k, v = OPS.split_qkv(joined, (3, 1), positions, rotation, dtype=torch.float64)
    x, turned = joined.view(2, 5, 10)[:, :4], torch.cat([q, k], 1)
    for row, position in enumerate(positions.tolist()):
        for i, frequency in enumerate(rotation.inverse_frequencies.tolist()):
            pair = torch.complex(x[row, :, i], x[row, :, i + 3])
            angle = float(torch.tensor(float(position)) * torch.tensor(frequency))
            expected = pair * complex(math.cos(angle), math.sin(angle)) * rotation.magnitude
            torch.testing.assert_close(torch.complex(turned[row, :, i], turned[row, :, i + 3]), expected)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert torch.equal(v.flatten(1), joined[:, 40:])


@pytest.mark.parametrize("heads_together", [False, True])
def test_split_qkv_normalises_then_clips(random: torch.Generator, heads_together: bool) -> None:
    joined = torch.randn(3, 4 * 6, generator=random)
    weights = torch.rand(12 if heads_together else 6, generator=random), torch.rand(6, generator=random)
    still = Rotation(torch.empty(0), 1.0)
    norm = QKNorm(*weights, 1e-5)
    q, k, v = OPS.split_qkv(joined, (2, 1), int32(0, 1, 2), still, norm=norm, limit=0.5, dtype=torch.float32)
    groups = joined[:, :12].view(3, -1, weights[0].shape[0])
    expected = torch.nn.functional.rms_norm(groups, (groups.shape[-1],), weights[0], 1e-5).clamp(-0.5, 0.5)
    torch.testing.assert_close(q.flatten(1), expected.flatten(1))
    torch.testing.assert_close(
        k[:, 0], torch.nn.functional.rms_norm(joined[:, 12:18], (6,), weights[1], 1e-5).clamp(-0.5, 0.5)
    )
    assert torch.equal(v[:, 0], joined[:, 18:].clamp(-0.5, 0.5))


def test_scale_and_sigmoid_scores(random: torch.Generator) -> None:
    x = torch.randn(4, 6, generator=random).bfloat16()
    assert torch.equal(OPS.scale(x, 0.3), (x.float() * 0.3).bfloat16())
    w = torch.randn(1, 6, generator=random).bfloat16()
    scores = OPS.sigmoid_scores(x, matrix(w))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.sigmoid(x.float() @ w.float().T))


# --- router and experts -----------------------------------------------------------------------------------------------
def test_route_softmax_first() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    ids, weights = OPS.route(logits, Routing(active=2))
    assert ids.dtype == torch.int32
    assert ids.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[0.4, 0.3]]))
    _, by_sum = OPS.route(logits, Routing(active=2, norm=1.0))
    torch.testing.assert_close(by_sum, torch.tensor([[4 / 7, 3 / 7]]))
    _, by_square = OPS.route(logits, Routing(active=2, norm=2.0))
    torch.testing.assert_close(by_square, torch.tensor([[0.8, 0.6]]))


def test_route_softmax_over_the_chosen() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    ids, weights = OPS.route(logits, Routing(active=2, scoring=Scoring.TOPK_SOFTMAX))
    assert ids.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[4 / 7, 3 / 7]]))


def test_route_breaks_ties_by_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0, 1.0], [0.0] * 6])
    ids, _ = OPS.route(logits, Routing(active=4))
    assert ids.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


def test_route_tells_logits_apart_that_weigh_the_same() -> None:
    logits = torch.tensor([[100.0, -40.0, -30.0]])  # the softmax of the last two is zero
    ids, weights = OPS.route(logits, Routing(active=2))
    assert ids.tolist() == [[0, 2]]
    assert weights.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("activation", list(Activation))
def test_experts_equal_a_loop(random: torch.Generator, activation: Activation) -> None:
    act = {
        Activation.SILU: silu,
        Activation.GELU: gelu,
        Activation.GELU_TANH: lambda x: gelu(x, approximate="tanh"),
    }[activation]
    experts, width, hidden, tokens = 5, 6, 8, 7
    gate_up = torch.randn(experts, 2, width, hidden, generator=random)
    down = torch.randn(experts, hidden, width, generator=random)
    x = torch.randn(tokens, hidden, generator=random)
    ids = torch.stack([torch.randperm(experts, generator=random)[:2] for _ in range(tokens)]).int()
    scores, residual = torch.rand(tokens, 2, generator=random), torch.randn(tokens, hidden, generator=random)
    y = OPS.experts(
        x, ExpertMatrices(gate_up, down, experts, width, hidden), ids, scores, activation, residual=residual, scale=0.25
    )
    for t in range(tokens):
        total = torch.zeros(hidden)
        for a in range(2):
            gate, up = gate_up[ids[t, a]]
            total += scores[t, a] * (down[ids[t, a]] @ (act(gate @ x[t]) * (up @ x[t])))
        torch.testing.assert_close(y[t], residual[t] + 0.25 * total)


# --- attention --------------------------------------------------------------------------------------------------------
BLOCK = 4


def shuffled_cache(
    lengths: list[int], kv_heads: int, head_dim: int, random: torch.Generator, dtype: torch.dtype
) -> tuple[KVLayer, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """A cache whose blocks belong to the requests in random order, and the keys and values that it holds.

    The cache starts as NaN, so that reading a place that was not written shows.
    """
    columns = [-(-length // BLOCK) for length in lengths]
    free = torch.randperm(sum(columns) + 3, generator=random).tolist()
    block_ids = torch.full((len(lengths), max(columns) + 1), 2**30, dtype=torch.int32)
    shape, _ = OPS.kv_shapes(len(free), kv_heads, head_dim, BLOCK, dtype)
    cache = KVLayer(
        torch.full(shape, float("nan"), dtype=dtype),
        torch.full(shape, float("nan"), dtype=dtype),
        kv_heads,
        head_dim,
        BLOCK,
    )
    keys, values = [], []
    for request, length in enumerate(lengths):
        for column in range(columns[request]):
            block_ids[request, column] = free.pop()
        k, v = torch.randn(2, length, kv_heads, head_dim, generator=random).to(dtype)
        slots = [int(block_ids[request, p // BLOCK]) * BLOCK + p % BLOCK for p in range(length)]
        OPS.write_kv(k, v, cache, int32(*slots))
        keys.append(k)
        values.append(v)
    return cache, block_ids, keys, values


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_equals_torch(random: torch.Generator, window: int | None, dtype: torch.dtype) -> None:
    cached, fresh = [0, 5, 11, 8], [6, 1, 4, 1]
    query_heads, kv_heads, head_dim = 6, 2, 8
    lengths = [c + f for c, f in zip(cached, fresh, strict=True)]
    cache, block_ids, keys, values = shuffled_cache(lengths, kv_heads, head_dim, random, dtype)
    q = torch.randn(sum(fresh), query_heads, head_dim, generator=random, dtype=dtype)
    starts = [sum(fresh[:s]) for s in range(len(fresh) + 1)]
    out = OPS.attention(q, cache, AttentionRows(int32(*starts), int32(*cached), block_ids), 0.3, window)
    for s, length in enumerate(lengths):
        mask = torch.zeros(fresh[s], length, dtype=torch.bool)
        for row in range(fresh[s]):
            last = cached[s] + row
            mask[row, max(0, last - (window or length) + 1) : last + 1] = True
        k, v = (x.repeat_interleave(query_heads // kv_heads, 1).transpose(0, 1) for x in (keys[s], values[s]))
        rows = slice(starts[s], starts[s + 1])
        expected = scaled_dot_product_attention(q[rows].transpose(0, 1), k, v, attn_mask=mask, scale=0.3)
        torch.testing.assert_close(out[rows], expected.transpose(0, 1))


def test_attention_reads_bfloat16_and_sums_wide(random: torch.Generator) -> None:
    cache, block_ids, _, _ = shuffled_cache([9], 1, 16, random, torch.bfloat16)
    q = torch.randn(2, 4, 16, generator=random).bfloat16()
    rows = AttentionRows(int32(0, 2), int32(7), block_ids)
    exact = OPS.attention(q.double(), cache, rows, 0.25, None)
    assert torch.equal(OPS.attention(q, cache, rows, 0.25, None), exact.float().bfloat16())


# --- sampling ---------------------------------------------------------------------------------------------------------
def sample(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    uniform: float = 0.0,
) -> int:
    floats = (torch.tensor([value]) for value in (temperature, top_p, min_p, uniform))
    temperatures, top_ps, min_ps, uniforms = floats
    rows = SamplingRows(temperatures, int32(top_k), top_ps, min_ps, uniforms)
    picked = OPS.sample(logits[None], rows)
    assert picked.dtype == torch.int32
    return int(picked[0])


EIGHTHS = torch.log(torch.tensor([1.0, 0.0, 4.0, 1.0, 2.0]) / 8)


def test_greedy_takes_the_lowest_of_the_largest() -> None:
    assert sample(torch.tensor([0.0, 3.0, 1.0, 3.0]), temperature=0.0, uniform=0.9) == 1


def test_uniform_walks_the_tokens_by_id() -> None:
    grid = [(i + 0.5) / 8 for i in range(8)]
    assert [sample(EIGHTHS, uniform=u) for u in grid] == [0, 2, 2, 2, 2, 3, 4, 4]


def test_every_token_gets_its_share(random: torch.Generator) -> None:
    logits = torch.randn(6, generator=random)
    count = 4000
    counts = torch.zeros(6)
    for i in range(count):
        counts[sample(logits, temperature=0.7, uniform=(i + 0.5) / count)] += 1
    torch.testing.assert_close(counts / count, torch.softmax(logits / 0.7, -1), atol=1 / count, rtol=0)


def kept(**restrictions: float | int) -> set[int]:
    return {sample(EIGHTHS, uniform=i / 64, **restrictions) for i in range(64)}  # type: ignore[arg-type]


def test_restrictions_keep_what_they_say() -> None:
    assert kept() == {0, 2, 3, 4}
    assert kept(top_k=1) == {2}
    assert kept(top_k=3) == {0, 2, 4}  # tokens 0 and 3 tie: the lower id stays
    assert kept(top_k=99) == {0, 2, 3, 4}
    assert kept(top_p=0.49) == {2}
    assert kept(top_p=0.51) == {2, 4}
    assert kept(top_p=0.80) == {0, 2, 4}
    assert kept(top_p=1e-9) == {2}
    assert kept(min_p=0.49) == {2, 4}
    assert kept(min_p=0.51) == {2}
    assert kept(top_k=2, top_p=0.99) == {2, 4}  # the sum that must be reached is of all tokens, not of the top two


def test_top_p_stops_where_it_is_reached() -> None:
    assert {sample(torch.zeros(4), top_p=0.5, uniform=i / 64) for i in range(64)} == {0, 1}


def test_rows_are_sampled_each_by_its_own_rule() -> None:
    rows = SamplingRows(
        temperature=torch.tensor([0.0, 1.0, 1.0]),
        top_k=int32(0, 0, 2),
        top_p=torch.tensor([1.0, 1.0, 1.0]),
        min_p=torch.tensor([0.0, 0.0, 0.0]),
        uniform=torch.tensor([0.0, 0.01, 0.99]),
    )
    assert OPS.sample(EIGHTHS.repeat(3, 1), rows).tolist() == [2, 0, 4]
