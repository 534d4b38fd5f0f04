"""The row-wise ops of every instruction set against float64, and their independence of the batch."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens import _cpu
from moelens.ops.interface import (
    Matrix,
    QKNorm,
    Rotation,
    Routing,
    RowNorm,
    Scoring,
    project_and_route_in_turn,
    project_qkv_in_turn,
)
from moelens.ops.native import NativeOps
from moelens.ops.reference import ReferenceOps

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
SHAPES = [(1, 1), (1, 16), (3, 37), (70, 128), (40, 1000)]
isas = pytest.mark.parametrize("isa", _cpu.available_isas())
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@cache
def native_ops(isa: str, threads: int) -> NativeOps:
    return NativeOps(threads, isa)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@isas
@dtypes
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rms_norm(isa: str, dtype: torch.dtype, rows: int, width: int) -> None:
    x, weight = (torch.randn(rows, width) * 0.002).to(dtype), torch.randn(width).to(dtype)  # small, so that eps counts
    out = native_ops(isa, 2).rms_norm(x, weight, 1e-5)
    expected = torch.nn.functional.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    assert relative_error(out, expected) < TOLERANCE[dtype]


@isas
@dtypes
@pytest.mark.parametrize(("rows", "width"), [shape for shape in SHAPES if shape[1] > 1])
def test_layer_norm(isa: str, dtype: torch.dtype, rows: int, width: int) -> None:
    x, weight = (torch.randn(rows, width) + 3).to(dtype), torch.randn(width).to(dtype)
    out = native_ops(isa, 2).layer_norm(x, weight, 1e-5)
    expected = torch.nn.functional.layer_norm(x.double(), (width,), weight.double(), eps=1e-5)
    assert relative_error(out, expected) < TOLERANCE[dtype]


@isas
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_norms_of_float32_round_to_the_weights_dtype(isa: str, rows: int, width: int) -> None:
    x, weight = torch.randn(rows, width) + 3, torch.randn(width).bfloat16()
    ops = native_ops(isa, 2)
    for norm in (ops.rms_norm, ops.layer_norm):
        out = norm(x, weight, 1e-5)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, norm(x, weight.float(), 1e-5).bfloat16())
    with pytest.raises(TypeError, match=r"rms_norm: weight must be bfloat16, found torch\.float32"):
        ops.rms_norm(x.bfloat16(), weight.float(), 1e-5)


@isas
@dtypes
def test_embed_copies_rows(isa: str, dtype: torch.dtype) -> None:
    table = torch.randn(50, 33).to(dtype)
    ids = torch.randint(0, 50, (70,), dtype=torch.int32)
    assert torch.equal(native_ops(isa, 2).embed(table, ids), table[ids.long()])
    widened = native_ops(isa, 2).embed(table, ids, dtype=torch.float32)
    assert widened.dtype == torch.float32 and torch.equal(widened, table[ids.long()].float())
    with pytest.raises(ValueError, match=r"embed: token_ids must be in \[0, 50\), found 50"):
        native_ops(isa, 2).embed(table, torch.tensor([3, 50], dtype=torch.int32))


@isas
@pytest.mark.parametrize(
    ("joined_dtype", "dtype"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
@pytest.mark.parametrize(
    ("rows", "heads", "head_dim", "pairs"),
    [(1, (1, 1), 2, 1), (7, (3, 1), 64, 32), (40, (2, 2), 50, 19), (5, (2, 1), 8, 0), (9, (4, 2), 128, 64)],
)
@pytest.mark.parametrize("norm", ["none", "head", "whole"])
def test_split_qkv(
    isa: str,
    joined_dtype: torch.dtype,
    dtype: torch.dtype,
    rows: int,
    heads: tuple[int, int],
    head_dim: int,
    pairs: int,
    norm: str,
) -> None:
    joined = torch.randn(rows, (heads[0] + 2 * heads[1]) * head_dim).to(joined_dtype)
    positions = torch.randint(0, 200_000, (rows,), dtype=torch.int32)
    rotation = Rotation(10000.0 ** (-torch.arange(pairs) / max(1, pairs)), 1.25)
    widths = [head_dim * (1 if norm == "head" else count) for count in heads]
    weights = [torch.rand(width).to(dtype) for width in widths]
    given_norm = None if norm == "none" else QKNorm(*weights, 1e-5)
    limit = None if norm == "head" else 1.5
    out = native_ops(isa, 2).split_qkv(joined, heads, positions, rotation, norm=given_norm, limit=limit, dtype=dtype)
    wide = ReferenceOps().split_qkv(
        joined.double(), heads, positions, rotation, norm=given_norm, limit=limit, dtype=torch.float64
    )
    for found, expected, atol in zip(out, wide, (2e-6, 2e-6, 0.0), strict=True):
        assert found.dtype == dtype and found.shape == expected.shape
        assert relative_error(found, expected) < TOLERANCE[dtype]
        atol = atol if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found.double(), expected, atol=atol, rtol=1e-2)


@isas
@dtypes
@pytest.mark.parametrize("normalised", [None, "heads", "rows"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    ("rows", "hidden", "dim"),
    [
        (0, 40, 8),
        (1, 40, 8),
        (513, 40, 8),
        (1100, 40, 8),
        (0, 40, 32),
        (513, 40, 32),
        (1, 40, 64),
        (13, 4104, 32),
        (1100, 40, 64),
    ],
)  # heads of whole panels of 32 columns have a kernel of their own; so long a sum is cut
def test_project_qkv_is_what_its_ops_give_in_turn(
    isa: str, dtype: torch.dtype, normalised: str | None, centred: bool, rows: int, hidden: int, dim: int
) -> None:
    heads = (4, 2)
    ops, columns = native_ops(isa, 2), (heads[0] + 2 * heads[1]) * dim
    weight = Matrix(torch.zeros(ops.matrix_shape(columns, hidden, dtype), dtype=dtype), columns, hidden)
    ops.pack_matrix(torch.randn(columns, hidden).to(dtype), weight.data)
    norm = RowNorm(torch.randn(hidden).to(dtype), 1e-5, centred)
    widths = {"heads": (dim, dim), "rows": (heads[0] * dim, heads[1] * dim)}.get(normalised or "")
    qk_norm = QKNorm(*(torch.randn(width).to(dtype) for width in widths), 1e-5) if widths else None
    rotation = Rotation(torch.tensor([1.0, 0.1, 0.01]), 1.0)
    positions = torch.randint(0, 999, (rows,), dtype=torch.int32)
    x, bias = torch.randn(rows, hidden), torch.randn(columns).to(dtype)
    given = (x, norm, weight, heads, positions, rotation)
    for optional in ({}, {"bias": bias, "limit": 1.5}):
        out = ops.project_qkv(*given, qk_norm=qk_norm, **optional)
        expected = project_qkv_in_turn(ops, *given, qk_norm=qk_norm, **optional)
        for one, other in zip(out, expected, strict=True):
            assert one.dtype == dtype and torch.equal(one, other)


@isas
@dtypes
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 513, 1100])
def test_project_and_route_is_what_its_ops_give_in_turn(isa: str, dtype: torch.dtype, centred: bool, rows: int) -> None:
    hidden, width, experts = 40, 24, 9
    ops = native_ops(isa, 2)
    output, router = (
        Matrix(torch.zeros(ops.matrix_shape(*shape, dtype), dtype=dtype), *shape)
        for shape in ((hidden, width), (experts, hidden))
    )
    for matrix in (output, router):
        ops.pack_matrix(torch.randn(matrix.rows, matrix.columns).to(dtype), matrix.data)
    norm, routing = RowNorm(torch.randn(hidden).to(dtype), 1e-5, centred), Routing(3, norm=1.0)
    attended, bias = torch.randn(rows, width).to(dtype), torch.randn(hidden).to(dtype)
    for of_stream in {dtype, torch.float32}:
        given = (attended, output, torch.randn(rows, hidden).to(of_stream), norm, router, routing)
        for optional in ({}, {"bias": bias, "scale": 0.5}):
            out = ops.project_and_route(*given, **optional)
            expected = project_and_route_in_turn(ops, *given, **optional)
            for one, other in zip(out, expected, strict=True):
                assert one.dtype == other.dtype and torch.equal(one, other)


def test_project_and_route_refuses_what_does_not_fit() -> None:
    ops = NativeOps(1)
    output, router = (
        Matrix(torch.zeros(ops.matrix_shape(*shape, torch.float32)), *shape) for shape in ((8, 6), (4, 8))
    )
    attended, x, norm, routing = torch.zeros(1, 6), torch.zeros(1, 8), RowNorm(torch.ones(8), 1e-5), Routing(2)
    with pytest.raises(ValueError, match=r"project_and_route: attended must be \[T, K\] = \[T, 6\], found \[1, 7\]"):
        ops.project_and_route(torch.zeros(1, 7), output, x, norm, router, routing)
    with pytest.raises(ValueError, match=r"project_and_route: norm_weight must be \[W\] = \[8\], found \[7\]"):
        ops.project_and_route(attended, output, x, RowNorm(torch.ones(7), 1e-5), router, routing)
    with pytest.raises(ValueError, match="project_and_route: router must be"):
        ops.project_and_route(attended, output, x, norm, output, routing)
    with pytest.raises(ValueError, match="project_and_route: active must be from 1 to the number of experts, 4"):
        ops.project_and_route(attended, output, x, norm, router, Routing(5))


def test_project_qkv_refuses_what_does_not_fit() -> None:
    ops, still = NativeOps(1), Rotation(torch.zeros(1), 1.0)
    weight = Matrix(torch.zeros(ops.matrix_shape(16, 8, torch.float32)), 16, 8)
    x, norm, zero = torch.zeros(1, 8), RowNorm(torch.ones(8), 1e-5), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"project_qkv: norm_weight must be \[W\] = \[8\], found \[7\]"):
        ops.project_qkv(x, RowNorm(torch.ones(7), 1e-5), weight, (2, 1), zero, still)
    with pytest.raises(ValueError, match="project_qkv: weight must be"):
        ops.project_qkv(torch.zeros(1, 9), RowNorm(torch.ones(9), 1e-5), weight, (2, 1), zero, still)
    with pytest.raises(ValueError, match=r"project_qkv: positions must be \[T\] = \[1\], found \[2\]"):
        ops.project_qkv(x, norm, weight, (2, 1), torch.zeros(2, dtype=torch.int32), still)
    with pytest.raises(ValueError, match="project_qkv: joined must have"):
        ops.project_qkv(x, norm, weight, (2, 2), zero, still)


@isas
def test_split_qkv_at_the_corners_of_a_turn(isa: str) -> None:
    positions = torch.arange(0, 3000, dtype=torch.int32)
    joined = torch.tensor([1.0, 0.0]).repeat(3000, 3)
    for frequency in (1.0, math.pi / 4, math.pi / 2, -1.0, 1e-30):
        rotation = Rotation(torch.tensor([frequency]), 1.0)
        q, k, v = native_ops(isa, 1).split_qkv(joined, (1, 1), positions, rotation, dtype=torch.float32)
        angles = (positions.float() * torch.tensor(frequency)).double()
        expected = torch.stack([angles.cos(), angles.sin()], -1)[:, None]
        torch.testing.assert_close(q.double(), expected, atol=3e-7, rtol=0)
        assert torch.equal(q, k) and torch.equal(v[:, 0], joined[:, 4:])


@isas
def test_split_qkv_keeps_nans(isa: str) -> None:
    joined = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.5, 3.0, float("nan")]])
    still, zero = Rotation(torch.empty(0), 1.0), torch.zeros(1, dtype=torch.int32)
    out = native_ops(isa, 1).split_qkv(joined, (1, 1), zero, still, limit=2.0, dtype=torch.float32)
    expected = torch.tensor([float("nan"), 2.0, -2.0, 0.5, 2.0, float("nan")])
    torch.testing.assert_close(torch.cat(out, -1).flatten(), expected, equal_nan=True)


def test_split_qkv_refuses_what_does_not_fit() -> None:
    ops, zero, still = native_ops(_cpu.best_isa(), 1), torch.zeros(1, dtype=torch.int32), Rotation(torch.ones(3), 1.0)
    with pytest.raises(ValueError, match="split_qkv: inverse_frequencies must be at most D/2 = 2, found 3"):
        ops.split_qkv(torch.zeros(1, 12), (1, 1), zero, still, dtype=torch.float32)
    turn = Rotation(torch.ones(2), 1.0)
    with pytest.raises(ValueError, match=r"split_qkv: joined must have \(Q\+2K\)·D = 12 columns, found 13"):
        ops.split_qkv(torch.zeros(1, 13), (1, 1), zero, turn, dtype=torch.float32)
    norm = QKNorm(torch.ones(3), torch.ones(4), 1e-5)
    with pytest.raises(ValueError, match="split_qkv: q_norm must have D = 4 elements or 1 times as many, found 3"):
        ops.split_qkv(torch.zeros(1, 12), (1, 1), zero, turn, norm=norm, dtype=torch.float32)
    with pytest.raises(ValueError, match="split_qkv: limit must be at least 0, found -1"):
        ops.split_qkv(torch.zeros(1, 12), (1, 1), zero, turn, limit=-1.0, dtype=torch.float32)


@isas
@dtypes
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 7, 5), (9, 5000)])
def test_scale(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(dtype)
    assert torch.equal(native_ops(isa, 2).scale(x, 0.3), (x.float() * 0.3).to(dtype))


@isas
def test_rounding_to_bfloat16_is_to_nearest_even(isa: str) -> None:
    bits = torch.randint(-(2**31), 2**31, (20_000,), dtype=torch.int64).to(torch.int32)
    x = torch.cat(
        [bits.view(torch.float32), (bits & 0x7FFF0000 | 0x8000).view(torch.float32), torch.tensor([float("nan")])]
    )
    x = x[(x == 0) | (x.abs() >= 2.0**-126) | x.isnan()]  # the bfloat16 instructions flush smaller ones
    ops = native_ops(isa, 1)
    one = torch.full(ops.matrix_shape(1, 1, torch.bfloat16), float("nan"), dtype=torch.bfloat16)
    ops.pack_matrix(torch.ones(1, 1, dtype=torch.bfloat16), one)
    # x comes in as float32 only through the scale, so take the elements one by one through a product with one.
    for value in [*x[:: len(x) // 300].tolist(), float("inf"), 65280.0, 1.00390625, 1.01171875]:
        out = ops.linear(torch.ones(1, 1, dtype=torch.bfloat16), Matrix(one, 1, 1), scale=value)
        expected = torch.tensor([[value]], dtype=torch.float32).to(torch.bfloat16)
        torch.testing.assert_close(out, expected, atol=0, rtol=0, equal_nan=True)


@isas
@dtypes
@pytest.mark.parametrize(("rows", "inner"), [(0, 4), (1, 1), (20, 65)])
def test_sigmoid_scores(isa: str, dtype: torch.dtype, rows: int, inner: int) -> None:
    ops = native_ops(isa, 2)
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(1, inner).to(dtype)
    storage = torch.empty(ops.matrix_shape(1, inner, dtype), dtype=dtype)
    ops.pack_matrix(weight, storage)
    out = ops.sigmoid_scores(x, Matrix(storage, 1, inner))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), torch.sigmoid(x.double() @ weight.double().T), atol=1e-6, rtol=1e-5)


@isas
@pytest.mark.parametrize("scoring", Scoring)
@pytest.mark.parametrize("norm", [None, 1.0, 2.0])
@pytest.mark.parametrize(
    ("rows", "experts", "active"),
    [(0, 4, 2), (1, 1, 1), (30, 8, 2), (20, 60, 17), (9, 5, 5), (12, 128, 8), (7, 250, 9), (5, 300, 4)],
)
def test_route(isa: str, scoring: Scoring, norm: float | None, rows: int, experts: int, active: int) -> None:
    logits = torch.randn(rows, experts) * 3
    ids, weights = native_ops(isa, 2).route(logits, Routing(active, scoring, norm))
    best, expected_ids = logits.double().sort(dim=-1, descending=True, stable=True)
    assert torch.equal(ids.long(), expected_ids[:, :active])
    pool = best if scoring is Scoring.SOFTMAX else best[:, :active]
    expected = torch.softmax(pool, -1)[:, :active]
    if norm is not None:
        expected = expected / expected.norm(p=norm, dim=-1, keepdim=True)
    torch.testing.assert_close(weights.double(), expected, atol=1e-7, rtol=1e-5)


@isas
@pytest.mark.parametrize("scoring", Scoring)
def test_route_breaks_ties_by_the_lower_id(isa: str, scoring: Scoring) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, -0.0, 0.0]])
    ids, _ = native_ops(isa, 1).route(logits, Routing(4, scoring))
    assert ids.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    few_values = torch.randint(0, 3, (50, 70)).float()
    ids, _ = native_ops(isa, 1).route(few_values, Routing(30, scoring))
    assert torch.equal(ids.long(), few_values.sort(dim=-1, descending=True, stable=True).indices[:, :30])


@isas
def test_route_gives_valid_distinct_ids_for_any_logits(isa: str) -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[nan, 1.0, nan, 2.0], [nan] * 4, [inf, nan, -inf, inf], [-inf] * 4])
    ids, _ = native_ops(isa, 1).route(logits, Routing(3))
    assert ids[0].tolist()[:2] == [3, 1]
    assert ids[2].tolist() == [0, 3, 2]
    for row in ids.tolist():
        assert len(set(row)) == 3
        assert set(row) <= {0, 1, 2, 3}


def test_wrong_arguments_of_route_are_named() -> None:
    ops = native_ops(_cpu.best_isa(), 1)
    with pytest.raises(ValueError, match="route: active must be from 1 to the number of experts, 4, found 5"):
        ops.route(torch.zeros(2, 4), Routing(5))
    with pytest.raises(ValueError, match="route: norm must be above 0 or None, found 0"):
        ops.route(torch.zeros(2, 4), Routing(2, norm=0.0))
    with pytest.raises(TypeError, match=r"route: logits must be float32, found torch\.bfloat16"):
        ops.route(torch.zeros(2, 4, dtype=torch.bfloat16), Routing(2))


@isas
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_row_is_the_same_bits_in_every_batch(isa: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    rows, width = data.draw(st.integers(1, 60)), data.draw(st.integers(2, 700))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x, weight = (
        torch.randn(rows, width, generator=generator).to(dtype),
        torch.randn(width, generator=generator).to(dtype),
    )
    positions = torch.randint(0, 5000, (rows,), generator=generator, dtype=torch.int32)
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, rows))
    many, alone = native_ops(isa, data.draw(st.integers(1, 3))), native_ops(isa, 1)

    def results(ops: NativeOps, part: slice) -> list[torch.Tensor]:
        some = x[part].clone()
        return [
            ops.rms_norm(some, weight, 1e-6),
            ops.layer_norm(some, weight, 1e-6),
            *ops.split_qkv(
                some.repeat(1, 3),
                (1, 1),
                positions[part].clone(),
                Rotation(torch.rand(width // 2, generator=torch.Generator().manual_seed(1)), 1.0),
                norm=QKNorm(weight, weight, 1e-6),
                dtype=dtype,
            ),
            *ops.route(some.float(), Routing(min(width, 5), norm=1.0)),
        ]

    for together, apart in zip(results(many, slice(0, rows)), results(alone, slice(begin, end)), strict=True):
        assert torch.equal(together[begin:end], apart)
