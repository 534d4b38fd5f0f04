"""linear, experts and packing by int8 weights, for every instruction set: exactly what the definition says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens import _cpu
from moelens.ops.interface import Activation, ExpertMatrices, Matrix, Ops
from moelens.ops.native import NativeOps
from moelens.ops.reference import ReferenceOps

DTYPES = (torch.float32, torch.bfloat16)
REFERENCE = ReferenceOps()


@cache
def native_ops(isa: str, threads: int) -> NativeOps:
    return NativeOps(threads, isa)


def pack(ops: Ops, source: torch.Tensor) -> Matrix:
    storage = torch.full(ops.matrix_shape(*source.shape, torch.int8), 77, dtype=torch.int8)
    ops.pack_matrix(source, storage)
    return Matrix(storage, *source.shape)


def pack_experts(ops: Ops, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> ExpertMatrices:
    experts, width, hidden = gate.shape
    gate_up = torch.full((experts, *ops.gate_up_shape(width, hidden, torch.int8)), 77, dtype=torch.int8)
    downs = torch.full((experts, *ops.down_shape(hidden, width, torch.int8)), 77, dtype=torch.int8)
    for expert in range(experts):
        ops.pack_gate_up(gate[expert], up[expert], gate_up[expert])
        ops.pack_down(down[expert], downs[expert])
    return ExpertMatrices(gate_up, downs, experts, width, hidden)


def linear_by(ops: Ops, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return ops.linear(x, pack(ops, weight), dtype=torch.float32)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_linear_is_the_definition_bit_for_bit(isa: str, data: st.DataObject) -> None:
    rows, inner, columns = (data.draw(st.integers(1, most)) for most in (40, 700, 100))
    dtype = data.draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = (torch.randn(rows, inner, generator=generator) * 10 ** data.draw(st.integers(-8, 8))).to(dtype)
    weight = (torch.randn(columns, inner, generator=generator) * 10 ** data.draw(st.integers(-8, 8))).to(dtype)
    ops = native_ops(isa, data.draw(st.integers(1, 3)))
    assert torch.equal(linear_by(ops, x, weight), linear_by(REFERENCE, x, weight))


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [33, 2500])
def test_linear_adds_bias_and_residual(isa: str, dtype: torch.dtype, columns: int) -> None:
    x, weight = torch.randn(13, 70).to(dtype), torch.randn(columns, 70).to(dtype)
    bias, residual = torch.randn(columns).to(dtype), torch.randn(13, columns)
    for base in (residual, residual.to(dtype)):
        found, expected = (
            ops.linear(x, pack(ops, weight), bias=bias, residual=base) for ops in (native_ops(isa, 2), REFERENCE)
        )
        assert found.dtype == base.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("isa", _cpu.available_isas())
def test_the_largest_sums_are_exact(isa: str) -> None:
    """Every product at its limit: none saturates, and powers of two are no rounding."""
    inner = 4096
    x = torch.full((4, inner), 127.0)
    x[1] = -127.0
    x[2, ::2] = -127.0
    x[3, :256], x[3, 256:] = 127.0 * 1024, -127.0
    weight = torch.full((2, inner), 127.0)
    weight[1] = -127.0
    expected = (x.double() @ weight.double().T).float()
    assert torch.equal(linear_by(native_ops(isa, 2), x, weight), expected)


@pytest.mark.parametrize("isa", _cpu.available_isas())
def test_large_activations_spoil_only_their_group(isa: str) -> None:
    x, weight = torch.randn(4, 1024), torch.randn(40, 1024)
    weight[:, :256] = 0.0
    calm = linear_by(native_ops(isa, 2), x, weight)
    x[:, 200] = 1e6
    assert torch.equal(linear_by(native_ops(isa, 2), x, weight), calm)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_tiny_rows_give_zeros(isa: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(4, 50), torch.randn(40, 50)
    x[1], x[2] = 0.0, 1e-38
    weight[7], weight[39] = 0.0, 1e-39
    found = linear_by(native_ops(isa, 2), x.to(dtype), weight.to(dtype))
    assert torch.equal(found[1:3], torch.zeros(2, 40))
    assert torch.equal(found[:, [7, 39]], torch.zeros(4, 2))
    assert torch.equal(found, linear_by(REFERENCE, x.to(dtype), weight.to(dtype)))


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 69, 127, 128])
def test_a_row_that_is_not_finite_gives_nans_and_nobody_else_notices(isa: str, wrong: float, place: int) -> None:
    ops, x, weight = native_ops(isa, 2), torch.randn(5, 129), torch.randn(40, 129)
    before = linear_by(ops, x, weight)
    x[3, place] = wrong
    after = linear_by(ops, x, weight)
    assert after[3].isnan().all()
    others = torch.tensor([0, 1, 2, 4])
    assert torch.equal(after[others], before[others])
    experts = pack_experts(ops, *(torch.randn(2, *shape) for shape in ((40, 129), (40, 129), (129, 40))))
    ids = torch.tensor([[0], [1], [0], [0], [1]], dtype=torch.int32)
    found = ops.experts(x, experts, ids, torch.ones(5, 1), Activation.SILU)
    assert found[3].isnan().all()
    assert found[others].isfinite().all()


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [False, True])
def test_packing_takes_rows_as_they_lie(isa: str, dtype: torch.dtype, turned: bool) -> None:
    """Transposed weights, and blocks of 32 rows one by one, are packed to the same bytes."""
    ops, weight = native_ops(isa, 1), torch.randn(70, 1030).to(dtype)
    whole = pack(ops, weight).data
    source = weight.t().contiguous().t() if turned else weight
    parts = torch.zeros_like(whole)
    for begin in (0, 32, 64):
        ops.pack_matrix(source[begin : begin + 32], parts, begin)
    x = torch.randn(3, 1030)
    assert torch.equal(parts, whole)
    assert torch.equal(ops.linear(x, Matrix(parts, 70, 1030)), linear_by(REFERENCE, x, weight))


def test_every_instruction_set_packs_the_same_bytes() -> None:
    weight, up = torch.randn(70, 1030).bfloat16(), torch.randn(70, 1030).bfloat16()
    first, *others = (native_ops(isa, 1) for isa in _cpu.available_isas())
    for ops in others:
        assert torch.equal(pack(ops, weight).data, pack(first, weight).data)
        gate_ups = [torch.zeros(one.gate_up_shape(70, 1030, torch.int8), dtype=torch.int8) for one in (ops, first)]
        ops.pack_gate_up(weight, up, gate_ups[0])
        first.pack_gate_up(weight, up, gate_ups[1])
        assert torch.equal(*gate_ups)


def random_experts(
    tokens: int, experts: int, active: int, hidden: int, width: int, dtype: torch.dtype, seed: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    """x [T, H], (gate, up, down), ids and scores [T, A]."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    matrices = (random(experts, width, hidden), random(experts, width, hidden), random(experts, hidden, width))
    ids = torch.rand(tokens, experts, generator=generator).topk(active, -1).indices.int()
    return random(tokens, hidden), matrices, ids, torch.softmax(random(tokens, active).float(), -1)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize(
    ("tokens", "experts", "active", "hidden", "width"),
    [(1, 3, 2, 40, 7), (9, 5, 2, 33, 17), (70, 4, 3, 130, 70), (300, 2, 1, 64, 48), (13, 1, 1, 70, 33)],
)
def test_experts_is_the_definition(
    isa: str,
    dtype: torch.dtype,
    activation: Activation,
    tokens: int,
    experts: int,
    active: int,
    hidden: int,
    width: int,
) -> None:
    """But for an activation's last bit, which may round an inner number to its neighbour."""
    x, matrices, ids, scores = random_experts(tokens, experts, active, hidden, width, dtype, seed=tokens)
    residual = torch.randn(tokens, hidden)
    found, expected = (
        ops.experts(x, pack_experts(ops, *matrices), ids, scores, activation, residual=residual, scale=0.5)
        for ops in (native_ops(isa, 2), REFERENCE)
    )
    assert (found - expected).norm() / (expected - residual).norm() < 1e-3


@pytest.mark.parametrize("isa", _cpu.available_isas())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_is_the_same_bits_in_every_batch(isa: str, data: st.DataObject) -> None:
    dtype, tokens = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 90))
    experts = data.draw(st.integers(1, 6))
    active = data.draw(st.integers(1, experts))
    hidden, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 90))
    many = native_ops(isa, data.draw(st.integers(1, 3)))
    x, matrices, ids, scores = random_experts(
        tokens, experts, active, hidden, width, dtype, data.draw(st.integers(0, 1000))
    )
    packed, matrix = pack_experts(many, *matrices), pack(many, matrices[0][0])
    begin = data.draw(st.integers(0, tokens - 1))
    rows = slice(begin, data.draw(st.integers(begin + 1, tokens)))

    def alike(run: Callable[[NativeOps, slice], torch.Tensor]) -> bool:
        return torch.equal(run(many, slice(None))[rows], run(native_ops(isa, 1), rows))

    assert alike(lambda ops, some: ops.linear(x[some], matrix))
    assert alike(lambda ops, some: ops.experts(x[some], packed, ids[some], scores[some], Activation.SILU))


@pytest.mark.parametrize("isa", _cpu.available_isas())
def test_many_tokens_are_computed_in_chunks(isa: str) -> None:
    """More tokens than one chunk of inner activations holds give what each gives alone."""
    tokens = 5200
    x, matrices, ids, scores = random_experts(tokens, 4, 4, 32, 1000, torch.float32, seed=1)
    ops = native_ops(isa, 2)
    packed = pack_experts(ops, *matrices)
    together = ops.experts(x, packed, ids, scores, Activation.SILU)
    for row in (0, 1676, 1677, 1678, tokens - 1):
        alone = ops.experts(x[row : row + 1], packed, ids[row : row + 1], scores[row : row + 1], Activation.SILU)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("isa", _cpu.available_isas())
def test_weights_of_two_dtypes_are_refused(isa: str) -> None:
    ops = native_ops(isa, 1)
    x, matrices, ids, scores = random_experts(3, 2, 1, 32, 32, torch.bfloat16, seed=1)
    packed = pack_experts(ops, *matrices)
    down = torch.zeros(2, *ops.down_shape(32, 32, torch.bfloat16), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="experts: gate_up and down must be of one dtype"):
        ops.experts(x, ExpertMatrices(packed.gate_up, down, 2, 32, 32), ids, scores, Activation.SILU)


def test_the_ceiling_counts_the_operations_of_whole_numbers() -> None:
    kernels = _cpu.Kernels(_cpu.best_isa(), 1)
    assert kernels.multiply_registers(1_000_000, int8=True) >= 1_000_000
