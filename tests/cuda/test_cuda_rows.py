"""The GPU's row-wise ops against float64: norms, q, k and v, the router."""

from __future__ import annotations

import pytest
import torch
from target import Target, relative_error

from moelens.ops.interface import QKNorm, Rotation, Routing, Scoring
from moelens.ops.reference import ReferenceOps

F32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {F32: 1e-6, BF16: 4e-3}
REFERENCE = ReferenceOps()


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (9, 16), (3, 37), (10, 128), (2, 512), (3, 1000), (2, 1031)])
@pytest.mark.parametrize(("x_dtype", "dtype"), [(F32, F32), (F32, BF16), (BF16, BF16)])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_norms(target: Target, name: str, x_dtype: torch.dtype, dtype: torch.dtype, rows: int, width: int) -> None:
    if name == "layer_norm" and width == 1:
        pytest.skip("a row of one element less its mean is 0, which has no relative error")
    x, weight = (torch.randn(rows, width) * 0.01 + (name == "layer_norm")).to(x_dtype), torch.randn(width).to(dtype)
    expected = getattr(REFERENCE, name)(x.double(), weight.double(), 1e-5)
    first, second = (getattr(target, name)(target.put(x), target.put(weight), 1e-5) for _ in range(2))
    assert first.dtype == dtype
    # Where the mean is large against the deviations, float32 sums lose what they cancel.
    assert relative_error(first, expected) < (TOLERANCE[dtype] if name == "rms_norm" or dtype == BF16 else 1e-4)
    assert torch.equal(first, second)


def test_a_row_of_a_norm_is_the_same_bits_in_every_batch(target: Target) -> None:
    for width in (64, 1000):
        x, weight = torch.randn(11, width), target.put(torch.randn(width))
        together = target.rms_norm(target.put(x), weight, 1e-6)
        for row in (0, 5, 10):
            assert torch.equal(together[row : row + 1], target.rms_norm(target.put(x[row : row + 1]), weight, 1e-6))


def check_split(
    target: Target,
    heads: tuple[int, int],
    head_dim: int,
    pairs: int,
    x_dtype: torch.dtype,
    dtype: torch.dtype,
    norm_width: int | None,
    limit: float | None,
) -> None:
    rows, (query_heads, kv_heads) = 5, heads
    joined = torch.randn(rows, (query_heads + 2 * kv_heads) * head_dim).to(x_dtype)
    positions = torch.tensor([0, 1, 77, 4095, 131071], dtype=torch.int32)
    frequencies = 10000.0 ** -(torch.arange(pairs) / max(1, pairs))
    norm = None
    if norm_width is not None:
        widths = (head_dim, head_dim) if norm_width == 1 else (query_heads * head_dim, kv_heads * head_dim)
        norm = QKNorm(torch.randn(widths[0]).to(dtype), torch.randn(widths[1]).to(dtype), 1e-6)
    rotation = Rotation(frequencies, 1.25)
    expected = REFERENCE.split_qkv(
        joined.double(), heads, positions, rotation, norm=norm, limit=limit, dtype=torch.float64
    )
    there = QKNorm(target.put(norm.q), target.put(norm.k), norm.eps) if norm else None
    out = target.split_qkv(
        target.put(joined),
        heads,
        target.put(positions),
        Rotation(target.put(frequencies), 1.25),
        norm=there,
        limit=limit,
        dtype=dtype,
    )
    for found, wanted in zip(out, expected, strict=True):
        assert found.shape == wanted.shape and found.dtype == dtype
        # The angle of a far position is rounded, to the same float32, but its sine is only as good as the library.
        assert relative_error(found, wanted) < (1e-5 if dtype == F32 else 4e-3)


@pytest.mark.parametrize(("heads", "head_dim", "pairs"), [((4, 2), 32, 16), ((3, 1), 50, 19), ((2, 2), 8, 0)])
@pytest.mark.parametrize(("x_dtype", "dtype"), [(F32, F32), (F32, BF16), (BF16, BF16)])
def test_split_qkv(
    target: Target, x_dtype: torch.dtype, dtype: torch.dtype, heads: tuple[int, int], head_dim: int, pairs: int
) -> None:
    check_split(target, heads, head_dim, pairs, x_dtype, dtype, None, None)


@pytest.mark.parametrize("norm_width", [1, 0])  # of a head, or of all
@pytest.mark.parametrize("limit", [None, 0.75])
def test_split_qkv_norms_and_limits_before_it_turns(target: Target, norm_width: int, limit: float | None) -> None:
    check_split(target, (12, 2), 32, 12, F32, BF16, norm_width, limit)


@pytest.mark.parametrize(("experts", "active"), [(1, 1), (8, 2), (60, 4), (64, 8), (128, 8), (300, 32)])
@pytest.mark.parametrize("scoring", Scoring)
@pytest.mark.parametrize("norm", [None, 1.0, 2.0])
def test_route(target: Target, scoring: Scoring, norm: float | None, experts: int, active: int) -> None:
    logits = torch.randn(7, experts) * 3
    routing = Routing(active, scoring, norm)
    ids, weights = target.route(target.put(logits), routing)
    expected_ids, expected = REFERENCE.route(logits.double(), routing)
    assert torch.equal(ids.cpu(), expected_ids)
    assert relative_error(weights, expected) < 1e-6


def test_route_takes_the_lower_id_among_equals_and_a_nan_last(target: Target) -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor(
        [[1.0, 2, 2, 1, 2, 0], [0.0, -0.0, 0, -0.0, 0, 0], [nan, -inf, 3, nan, -1, -inf], [nan] * 6, [-inf] * 6]
    )
    ids, _ = target.route(target.put(logits), Routing(4))
    assert ids.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3], [2, 4, 1, 5], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_route_refuses_what_it_can_not_hold(target: Target) -> None:
    with pytest.raises(ValueError, match="route: at most 512 experts of which 32 are active can be routed to"):
        target.route(target.put(torch.zeros(1, 513)), Routing(1))


def test_no_rows_are_no_launch(target: Target) -> None:
    empty = target.put(torch.zeros(0, 64))
    assert target.rms_norm(empty, target.put(torch.ones(64)), 1e-6).shape == (0, 64)
    assert target.route(empty, Routing(3))[0].shape == (0, 3)
