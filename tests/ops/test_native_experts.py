"""experts and its packing for every instruction set against float64, and their independence of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens import _cpu
from moelens.ops.interface import Activation, ExpertMatrices
from moelens.ops.native import NativeOps

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3}


@cache
def native_ops(isa: str, threads: int) -> NativeOps:
    return NativeOps(threads, isa)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Problem:
    """x [T, H], gate and up [E, I, H], down [E, H, I], ids and scores [T, A]."""

    x: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    ids: torch.Tensor
    scores: torch.Tensor

    def rows(self, begin: int, end: int) -> Problem:
        return Problem(
            self.x[begin:end].clone(),
            self.gate,
            self.up,
            self.down,
            self.ids[begin:end].clone(),
            self.scores[begin:end].clone(),
        )

    def expected(self, activation: Activation) -> torch.Tensor:
        """The definition in float64, the inner activations rounded to x's dtype."""
        out = torch.zeros(self.x.shape, dtype=torch.float64)
        for t in range(len(self.x)):
            for expert, score in zip(self.ids[t].tolist(), self.scores[t].tolist(), strict=True):
                gate, up = (
                    self.gate[expert].double() @ self.x[t].double(),
                    self.up[expert].double() @ self.x[t].double(),
                )
                inner = (activate(activation, gate) * up).to(self.x.dtype).double()
                out[t] += score * (self.down[expert].double() @ inner)
        return out


def activate(activation: Activation, x: torch.Tensor) -> torch.Tensor:
    if activation is Activation.SILU:
        return torch.nn.functional.silu(x)
    return torch.nn.functional.gelu(x, approximate="tanh" if activation is Activation.GELU_TANH else "none")


def make_problem(
    tokens: int,
    experts: int,
    active: int,
    hidden: int,
    width: int,
    dtype: torch.dtype,
    seed: int,
    used: int | None = None,
) -> Problem:
    """Random; of the experts, only the first `used` are chosen."""
    g = torch.Generator().manual_seed(seed)
    ids = (
        torch.stack([torch.randperm(used or experts, generator=g)[:active] for _ in range(tokens)])
        if tokens
        else torch.empty(0, active)
    )
    return Problem(
        torch.randn(tokens, hidden, generator=g).to(dtype),
        (torch.randn(experts, width, hidden, generator=g) * hidden**-0.5).to(dtype),
        (torch.randn(experts, width, hidden, generator=g) * hidden**-0.5).to(dtype),
        (torch.randn(experts, hidden, width, generator=g) * width**-0.5).to(dtype),
        ids.int(),
        torch.rand(tokens, active, generator=g),
    )


def pack(ops: NativeOps, p: Problem) -> ExpertMatrices:
    (experts, width, hidden), dtype = p.gate.shape, p.x.dtype
    gate_up = torch.full((experts, *ops.gate_up_shape(width, hidden, dtype)), float("nan"), dtype=dtype)
    down = torch.full((experts, *ops.down_shape(hidden, width, dtype)), float("nan"), dtype=dtype)
    for e in range(experts):
        ops.pack_gate_up(p.gate[e], p.up[e], gate_up[e])
        ops.pack_down(p.down[e], down[e])
    return ExpertMatrices(gate_up, down, experts, width, hidden)


def run(ops: NativeOps, p: Problem, matrices: ExpertMatrices, activation: Activation = Activation.SILU) -> torch.Tensor:
    return ops.experts(p.x, matrices, p.ids, p.scores, activation)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "experts", "active", "hidden", "width"),
    [
        (1, 4, 2, 64, 32),
        (7, 5, 3, 33, 17),
        (40, 3, 1, 100, 50),
        (30, 16, 4, 64, 20),
        (3, 2, 2, 1, 1),
        (40, 6, 2, 5001, 20),
        (40, 6, 2, 20, 4201),
    ],
)
def test_experts_are_the_weighted_sum(
    isa: str, dtype: torch.dtype, tokens: int, experts: int, active: int, hidden: int, width: int
) -> None:
    ops, p = native_ops(isa, 2), make_problem(tokens, experts, active, hidden, width, dtype, 0)
    matrices, expected = pack(ops, p), p.expected(Activation.SILU)
    # Rounding an inner activation of bfloat16 one unit differently is allowed, so bfloat16 gets its own tolerance.
    assert relative_error(run(ops, p, matrices), expected) < TOLERANCE[dtype]
    residual = torch.randn(tokens, hidden).to(dtype)
    out = ops.experts(p.x, matrices, p.ids, p.scores, Activation.SILU, residual=residual, scale=0.25)
    assert relative_error(out, residual.double() + 0.25 * expected) < TOLERANCE[dtype]
    wide = residual.float() + 1e-3
    out = ops.experts(p.x, matrices, p.ids, p.scores, Activation.SILU, residual=wide, scale=0.25)
    assert out.dtype == torch.float32
    assert relative_error(out, wide.double() + 0.25 * expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("tokens", [20, 60])  # an expert's rows are one tile or more
def test_every_activation(isa: str, activation: Activation, tokens: int) -> None:
    ops, p = native_ops(isa, 1), make_problem(tokens, 4, 2, 48, 40, torch.float32, 1)
    p.x.mul_(8.0)  # into the tails of the activations
    assert relative_error(run(ops, p, pack(ops, p), activation), p.expected(activation)) < 1e-5


@pytest.mark.parametrize("isa", _cpu.available_isas())
def test_extreme_gates_give_zero_or_the_gate(isa: str) -> None:
    ops = native_ops(isa, 1)
    one = torch.ones(1, 1, 1)
    for gate, expected in ((-200.0, 0.0), (-88.0, 0.0), (200.0, 200.0), (0.0, 0.0), (float("nan"), float("nan"))):
        for activation in Activation:
            p = Problem(torch.ones(1, 1), one * gate, one, one, torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1))
            torch.testing.assert_close(
                run(ops, p, pack(ops, p), activation), torch.tensor([[expected]]), atol=1e-30, rtol=1e-6, equal_nan=True
            )


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_of_no_tokens_are_empty(isa: str, dtype: torch.dtype) -> None:
    ops, p = native_ops(isa, 2), make_problem(0, 4, 2, 16, 8, dtype, 0)
    assert run(ops, p, pack(ops, p)).shape == (0, 16)


@pytest.mark.parametrize("isa", _cpu.available_isas())
def test_many_tokens_are_cut_into_groups_and_blocks(isa: str) -> None:
    ops, p = native_ops(isa, 3), make_problem(1500, 6, 2, 40, 24, torch.bfloat16, 2, used=4)
    matrices = pack(ops, p)
    together = run(ops, p, matrices)
    assert relative_error(together[:20], p.rows(0, 20).expected(Activation.SILU)) < 4e-3
    alone = native_ops(isa, 1)
    for begin in range(0, 1500, 100):
        assert torch.equal(together[begin : begin + 7], run(alone, p.rows(begin, begin + 7), matrices))


@pytest.mark.parametrize("isa", _cpu.available_isas())
def test_tokens_whose_inner_activations_are_large_are_computed_in_chunks(isa: str) -> None:
    p = make_problem(520, 2, 2, 3, 8200, torch.float32, 3)  # 512 tokens of 64 KiB are a chunk
    ops = native_ops(isa, 2)
    matrices = pack(ops, p)
    tail = p.rows(505, 520)
    assert relative_error(run(ops, p, matrices)[505:], tail.expected(Activation.SILU)) < 1e-5


@pytest.mark.parametrize("isa", _cpu.available_isas())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_of_experts_is_the_same_bits_in_every_batch(isa: str, data: st.DataObject) -> None:
    dtype, experts = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 9))
    tokens, active = data.draw(st.integers(1, 40)), data.draw(st.integers(1, min(experts, 4)))
    hidden, width = data.draw(st.integers(1, 130)), data.draw(st.integers(1, 70))
    p = make_problem(tokens, experts, active, hidden, width, dtype, data.draw(st.integers(0, 1000)))
    ops = native_ops(isa, data.draw(st.integers(1, 3)))
    matrices = pack(ops, p)
    begin = data.draw(st.integers(0, tokens - 1))
    end = data.draw(st.integers(begin + 1, tokens))
    apart = run(native_ops(isa, 1), p.rows(begin, end), matrices)
    assert torch.equal(run(ops, p, matrices)[begin:end], apart)


@pytest.mark.parametrize("isa", _cpu.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "hidden"), [(16, 8), (37, 21), (1, 1)])
def test_gate_and_up_share_panels(isa: str, dtype: torch.dtype, width: int, hidden: int) -> None:
    ops = native_ops(isa, 1)
    gate, up = torch.randn(width, hidden).to(dtype), torch.randn(width, hidden).to(dtype)
    storage = torch.full(ops.gate_up_shape(width, hidden, dtype), float("nan"), dtype=dtype)
    rows = torch.zeros(-(-width // 16), 2, 16, hidden, dtype=dtype)
    for panel in range(len(rows)):
        for half, source in enumerate((gate, up)):
            some = source[16 * panel : 16 * panel + 16]
            rows[panel, half, : len(some)] = some
    joined = torch.empty_like(storage)
    ops.pack_matrix(rows.view(-1, hidden), joined)
    for transposed in (False, True):
        storage.fill_(float("nan"))
        if transposed:
            ops.pack_gate_up(gate.T.contiguous().T, up.T.contiguous().T, storage)
        else:
            ops.pack_gate_up(gate, up, storage)
        assert torch.equal(storage, joined)


def test_wrong_arguments_of_experts_are_named() -> None:
    ops, p = native_ops(_cpu.best_isa(), 1), make_problem(3, 4, 2, 16, 8, torch.float32, 0)
    m = pack(ops, p)
    silu = Activation.SILU
    with pytest.raises(ValueError, match=r"experts: ids must be in \[0, 4\), found 4"):
        ops.experts(p.x, m, p.ids.clone().fill_(4), p.scores, silu)
    with pytest.raises(ValueError, match=r"experts: ids must be in \[0, 4\), found -1"):
        ops.experts(p.x, m, p.ids.clone().fill_(-1), p.scores, silu)
    with pytest.raises(ValueError, match=r"experts: ids must be \[T, A\] = \[3, A\], found \[2, 2\]"):
        ops.experts(p.x, m, p.ids[:2], p.scores, silu)
    with pytest.raises(TypeError, match=r"experts: ids must be int32, found torch\.int64"):
        ops.experts(p.x, m, p.ids.long(), p.scores, silu)
    with pytest.raises(ValueError, match=r"experts: scores must be \[T, A\] = \[3, 2\], found \[3, 1\]"):
        ops.experts(p.x, m, p.ids, p.scores[:, :1].contiguous(), silu)
    with pytest.raises(ValueError, match=r"experts: gate_up must be \[E, 1, 15, 32\]"):
        ops.experts(torch.zeros(3, 15), m, p.ids, p.scores, silu)
    with pytest.raises(
        ValueError, match=r"experts: down must be \[E, 1, 9, 32\] = \[4, 1, 9, 32\], found \[4, 1, 8, 32\]"
    ):
        ops.experts(p.x, ExpertMatrices(m.gate_up, m.down, 4, 9, 16), p.ids, p.scores, silu)
    with pytest.raises(ValueError, match="experts: width must be at least 1, found 0"):
        ops.experts(p.x, ExpertMatrices(m.gate_up, m.down, 4, 0, 16), p.ids, p.scores, silu)
    with pytest.raises(ValueError, match="experts: x must have at least 1 column, found 0"):
        ops.experts(torch.zeros(3, 0), m, p.ids, p.scores, silu)
    with pytest.raises(ValueError, match="experts: gate_up must hold at least 1 expert, found 0"):
        ops.experts(p.x, ExpertMatrices(m.gate_up[:0], m.down[:0], 0, 8, 16), p.ids[:, :0], p.scores[:, :0], silu)
    with pytest.raises(ValueError, match=r"experts: residual must be \[T, H\] = \[3, 16\], found \[1, 16\]"):
        ops.experts(p.x, m, p.ids, p.scores, silu, residual=torch.zeros(1, 16))
    with pytest.raises(ValueError, match=r"pack_gate_up: up must be \[I, K\] = \[8, 16\], found \[7, 16\]"):
        ops.pack_gate_up(p.gate[0], p.up[0][:7], m.gate_up[0])
    with pytest.raises(ValueError, match=r"pack_down: storage must be \[1, 8, 32\], found \[1, 16, 32\]"):
        ops.pack_down(p.down[0], m.gate_up[0])
