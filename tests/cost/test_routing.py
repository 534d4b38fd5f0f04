"""How many experts are touched, against drawing them, by shares that are given and by shares that are counted."""

from __future__ import annotations

import statistics

import pytest
import torch

from moelens.cost.routing import EVEN, RoutingLoad
from moelens.models.config import MoEFFN

FFN = MoEFFN(experts=16, active=2, width=8)
LAYERS = 6


def draw(weights: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    """Choices [tokens, A] of tokens that are independent, by the weights [E] of experts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(weights.expand(tokens, -1), FFN.active, generator=generator)


def test_touched_experts_match_drawing_them() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.06, 0.04])
    for load, weights in ((EVEN, torch.ones(8)), (RoutingLoad(tuple(shares.tolist())), shares)):
        ffn = MoEFFN(8, 1, 16)
        drawn = torch.multinomial(weights.expand(4000, 8), 12, replacement=True, generator=generator)
        mean = sum(len(set(row)) for row in drawn.tolist()) / 4000
        assert load.touched(ffn, 12) == pytest.approx(mean, rel=0.01)
    assert RoutingLoad(tuple(shares.tolist())).imbalance == pytest.approx(2.4)


def test_touched_never_exceeds_what_there_is() -> None:
    ffn = MoEFFN(64, 8, 16)
    assert EVEN.touched(ffn, 1) == pytest.approx(8)
    assert EVEN.touched(ffn, 10_000) == pytest.approx(64)
    assert RoutingLoad((0.9, *(0.1 / 63,) * 63)).touched(ffn, 1) < 8  # the busiest is chosen once at most


@pytest.mark.parametrize("uneven_layers", [0, 3, LAYERS])
def test_what_was_counted_tells_how_many_are_touched_whichever_are_busy_in_a_layer(uneven_layers: int) -> None:
    """Busy experts differ by layer, so that all together each is chosen about as often as any other."""
    weights = torch.ones(LAYERS, FFN.experts)
    for layer in range(uneven_layers):
        weights[layer, [2 * layer, 2 * layer + 1]] = 50.0
    chosen = [draw(each, 8000, seed) for seed, each in enumerate(weights)]
    load = RoutingLoad.of(torch.stack([each.flatten().bincount(minlength=FFN.experts) for each in chosen]))
    assert sum(load.shares) == pytest.approx(1.0)
    assert load.touched(FFN, 1) == pytest.approx(FFN.active)
    for tokens in (4, 16, 40):
        steps = [step for each in chosen for step in each.view(-1, tokens, FFN.active)]
        assert load.touched(FFN, tokens) == pytest.approx(statistics.fmean(len(s.unique()) for s in steps), rel=0.01)
    assert load.imbalance == pytest.approx(1.0 if not uneven_layers else FFN.experts * 0.42, rel=0.15)
