"""The GPU's matrix products, linear and experts, against float64, and their independence of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from target import Target, relative_error

from moelens.cost.footprint import activation_bytes
from moelens.models.config import MoEFFN
from moelens.models.registry import build
from moelens.ops.cuda import ExpertProduct, choose_expert_product
from moelens.ops.interface import Activation, ExpertMatrices, Matrix
from moelens.planning.catalogue import model_names, named_config

F32, BF16 = torch.float32, torch.bfloat16
TOLERANCE = {F32: 1e-5, BF16: 4e-3}


def pack(target: Target, weight: torch.Tensor) -> Matrix:
    storage = torch.full(target.matrix_shape(*weight.shape, BF16), float("nan"), dtype=BF16)
    target.pack_matrix(weight, storage)
    return Matrix(target.put(storage), *weight.shape)


# Rows for each of the three shapes of tiles; columns and depths on and off the tiles' borders.
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1, 1, 1), (5, 33, 7), (17, 160, 96), (24, 7, 33), (25, 130, 64), (70, 36, 130), (97, 200, 40), (140, 64, 256)],
)
def test_linear(target: Target, rows: int, columns: int, depth: int, seed: int) -> None:
    target.shuffle(seed)
    x, weight = torch.randn(rows, depth).to(BF16), torch.randn(columns, depth).to(BF16)
    bias, residual = torch.randn(columns).to(BF16), torch.randn(rows, columns)
    packed, there = pack(target, weight), target.put(x)
    product = x.double() @ weight.double().T
    plain = target.linear(there, packed)
    assert plain.dtype == BF16 and relative_error(plain, product) < 4e-3
    wide = target.linear(there, packed, dtype=F32)
    assert wide.dtype == F32 and relative_error(wide, product) < 1e-5
    assert torch.equal(plain, wide.to(BF16)), "rounded once"
    expected = residual.double() + 0.5 * (product + bias.double())
    for dtype in (F32, BF16):
        base = residual.to(dtype)
        wanted = expected - residual.double() + base.double()
        out = target.linear(there, packed, bias=target.put(bias), residual=target.put(base), scale=0.5)
        assert out.dtype == dtype and relative_error(out, wanted) < TOLERANCE[dtype]


def test_a_row_of_linear_is_the_same_bits_in_every_batch(target: Target) -> None:
    x, weight = torch.randn(150, 200).to(BF16), pack(target, torch.randn(70, 200).to(BF16))
    together = target.linear(target.put(x), weight, dtype=F32)
    for begin, end in ((0, 1), (140, 150), (3, 43), (60, 135)):
        assert torch.equal(together[begin:end], target.linear(target.put(x[begin:end]), weight, dtype=F32))


def test_sigmoid_scores(target: Target) -> None:
    x, weight = torch.randn(9, 48).to(BF16), torch.randn(1, 48).to(BF16)
    out = target.sigmoid_scores(target.put(x), pack(target, weight))
    assert relative_error(out, torch.sigmoid(x.double() @ weight.double().T)) < 1e-6


@dataclass(frozen=True)
class Problem:
    """x [T, H], gate and up [E, I, H], down [E, H, I], ids and scores [T, A]."""

    x: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    ids: torch.Tensor
    scores: torch.Tensor

    @classmethod
    def random(
        cls, tokens: int, experts: int, active: int, hidden: int, width: int, used: int | None = None
    ) -> Problem:
        """Of the experts, only the first `used` are chosen."""
        ids = torch.stack([torch.randperm(used or experts)[:active] for _ in range(tokens)])
        return cls(
            torch.randn(tokens, hidden).to(BF16),
            (torch.randn(experts, width, hidden) * hidden**-0.5).to(BF16),
            (torch.randn(experts, width, hidden) * hidden**-0.5).to(BF16),
            (torch.randn(experts, hidden, width) * width**-0.5).to(BF16),
            ids.int(),
            torch.rand(tokens, active),
        )

    def expected(self, activation: Activation) -> torch.Tensor:
        """The definition in float64, the inner activations rounded."""
        out = torch.zeros(self.x.shape, dtype=torch.float64)
        for t in range(len(self.x)):
            for expert, score in zip(self.ids[t].tolist(), self.scores[t].tolist(), strict=True):
                gate, up = (w[expert].double() @ self.x[t].double() for w in (self.gate, self.up))
                inner = (activate(gate, activation) * up).to(BF16).double()
                out[t] += score * (self.down[expert].double() @ inner)
        return out

    def pack(self, target: Target) -> ExpertMatrices:
        experts, width, hidden = self.gate.shape
        gate_up = torch.full((experts, *target.gate_up_shape(width, hidden, BF16)), float("nan"), dtype=BF16)
        down = torch.full((experts, *target.down_shape(hidden, width, BF16)), float("nan"), dtype=BF16)
        for e in range(experts):
            target.pack_gate_up(self.gate[e], self.up[e], gate_up[e])
            target.pack_down(self.down[e], down[e])
        return ExpertMatrices(target.put(gate_up), target.put(down), experts, width, hidden)

    def run(
        self,
        target: Target,
        weights: ExpertMatrices,
        rows: slice = slice(None),
        activation: Activation = Activation.SILU,
        residual: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> torch.Tensor:
        x, ids, scores = (target.put(y[rows]) for y in (self.x, self.ids, self.scores))
        base = None if residual is None else target.put(residual)
        return target.experts(x, weights, ids, scores, activation, residual=base, scale=scale)


def activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation is Activation.SILU:
        return torch.nn.functional.silu(x)
    return torch.nn.functional.gelu(x, approximate="tanh" if activation is Activation.GELU_TANH else "none")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("tokens", "experts", "active", "hidden", "width"),
    [
        (1, 4, 2, 64, 32),
        (7, 5, 3, 33, 17),
        (9, 40, 8, 64, 48),
        (60, 3, 2, 100, 50),
        (120, 2, 2, 160, 20),
        (3, 2, 2, 1, 1),
    ],
)
def test_experts_are_the_weighted_sum(
    target: Target, tokens: int, experts: int, active: int, hidden: int, width: int, seed: int
) -> None:
    target.shuffle(seed)
    p = Problem.random(tokens, experts, active, hidden, width)
    weights, expected = p.pack(target), p.expected(Activation.SILU)
    out = p.run(target, weights)
    assert out.dtype == BF16 and relative_error(out, expected) < 4e-3
    residual = torch.randn(tokens, hidden)
    wide = p.run(target, weights, residual=residual, scale=0.25)
    assert wide.dtype == F32 and relative_error(wide, residual.double() + 0.25 * expected) < 4e-4


def test_experts_that_nobody_chose_are_passed_over(target: Target) -> None:
    p = Problem.random(30, 70, 2, 32, 16, used=3)
    assert relative_error(p.run(target, p.pack(target)), p.expected(Activation.SILU)) < 4e-3


@pytest.mark.parametrize("activation", Activation)
def test_every_activation(target: Target, activation: Activation) -> None:
    p = Problem.random(20, 4, 2, 48, 40)
    p.x.mul_(8.0)  # into the tails of the activations
    out = p.run(target, p.pack(target), activation=activation, residual=torch.zeros(20, 48))
    assert relative_error(out, p.expected(activation)) < 2e-3


def test_a_row_of_experts_is_the_same_bits_in_every_batch(target: Target) -> None:
    p = Problem.random(220, 3, 2, 72, 40)
    weights, base = p.pack(target), torch.zeros(220, 72)
    together = p.run(target, weights, residual=base)
    for begin, end in ((0, 1), (210, 220), (7, 47)):
        rows = slice(begin, end)
        target.shuffle(begin)
        assert torch.equal(together[rows], p.run(target, weights, rows, residual=base[rows]))


def test_terms_that_exceed_the_workspace_are_taken_by_columns(target: Target) -> None:
    # 150,000 pairs of 128 columns of float32 exceed 64 MiB; only the plan is looked at, since a run would take minutes.
    weights = ExpertMatrices(torch.empty(0), torch.empty(0), 8, 16, 4096)
    at_once = target.experts_workspace_bytes(1000, weights, 2)
    many = target.experts_workspace_bytes(75_000, weights, 2)
    assert at_once > 1000 * 2 * 4096 * 4
    assert 150_000 * 128 * 4 < many < 150_000 * 256 * 4
    assert target.experts_workspace_bytes(0, weights, 2) == 0


@pytest.mark.parametrize("model", model_names())
@pytest.mark.parametrize("tokens", [1, 16, 256, 2048, 17_000])
def test_a_placement_leaves_room_for_the_workspace(target: Target, model: str, tokens: int) -> None:
    """What it charges for activations holds the residual stream and the workspace of any layer's experts."""
    settings = named_config(model)
    assert settings is not None
    config = build(settings, torch.bfloat16).config
    for ffn in {layer.ffn for layer in config.layers}:
        if isinstance(ffn, MoEFFN):
            weights = ExpertMatrices(torch.empty(0), torch.empty(0), ffn.experts, ffn.width, config.hidden)
            needed = target.experts_workspace_bytes(tokens, weights, ffn.active)
            assert needed + 2 * 4 * tokens * config.hidden <= activation_bytes(config, tokens)


def test_experts_of_no_tokens_are_empty(target: Target) -> None:
    p = Problem.random(1, 4, 2, 16, 8)
    assert p.run(target, p.pack(target), slice(0, 0)).shape == (0, 16)


def test_torchs_grouped_product_is_a_second_implementation(target: Target) -> None:
    if not hasattr(torch.nn.functional, "grouped_mm") and not hasattr(torch, "_grouped_mm"):
        pytest.skip("this torch has no grouped product")
    p = Problem.random(40, 5, 2, 64, 48)
    weights, residual = p.pack(target), torch.randn(40, 64)
    second = Target(target.device, target.kernels, fenced=False, expert_product=ExpertProduct.GROUPED_MM)
    out = p.run(second, weights, residual=residual, scale=0.5)
    assert relative_error(out, residual.double() + 0.5 * p.expected(Activation.SILU)) < 4e-3
    chosen = choose_expert_product(
        lambda product: Target(target.device, target.kernels, fenced=False, expert_product=product), weights, 8, 2, 1
    )
    assert chosen in ExpertProduct


def test_wrong_arguments_are_named(target: Target) -> None:
    p = Problem.random(3, 4, 2, 16, 8)
    weights, x = p.pack(target), target.put(p.x)
    matrix = pack(target, torch.randn(40, 16).to(BF16))
    with pytest.raises(ValueError, match=r"linear: x must be \[T, 16\] = \[T, 16\], found \[3, 8\]"):
        target.linear(target.put(p.x[:, :8]), matrix)
    with pytest.raises(TypeError, match=r"linear: x must be bfloat16, found torch\.float32"):
        target.linear(x.float(), matrix)
    with pytest.raises(ValueError, match="linear: x must start at a multiple of 16 bytes"):
        target.linear(target.put(torch.zeros(70, dtype=BF16))[3:51].view(3, 16), matrix)
    with pytest.raises(ValueError, match=r"experts: ids must be \[T, A\] = \[3, A\], found \[2, 2\]"):
        target.experts(x, weights, target.put(p.ids[:2]), target.put(p.scores), Activation.SILU)
    with pytest.raises(ValueError, match=r"experts: down must be \[E, 1, 4, 32, 2\] = \[4, 1, 4, 32, 2\]"):
        wrong = ExpertMatrices(weights.gate_up, weights.gate_up, 4, 8, 16)
        target.experts(x, wrong, target.put(p.ids), target.put(p.scores), Activation.SILU)
