"""Routes are believed once there are enough of them, and what is counted rarely is left out."""

from __future__ import annotations

import pytest
import torch

from moelens.cost.routing import EVEN, RoutingLoad
from moelens.models.config import GQA, DenseFFN, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.routes import LEAST_CHOICES, LEAST_ROWS, RouteCounts

FFN = MoEFFN(experts=8, active=2, width=8)
ENOUGH = LEAST_CHOICES * FFN.experts // FFN.active  # rows of a layer
PAIRS = torch.tensor([[0, 1], [0, 2]], dtype=torch.int32)  # expert 0 by all rows, 1 and 2 by half of them
SHARES = (0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0)


def make(*layers: MoEFFN | DenseFFN) -> RouteCounts:
    attention = GQA(4, 2, 8, 1.0, Rope((1.0,)))
    configs = tuple(LayerConfig(attention, ffn) for ffn in layers)
    return RouteCounts(ModelConfig("toy", 16, 100, configs, torch.bfloat16, max_context=64, tied_embeddings=False))


def ids(rows: int) -> torch.Tensor:
    return PAIRS.repeat(rows // 2, 1)


def test_it_is_even_until_enough_rows_of_all_layers_were_counted() -> None:
    counts = make(FFN, DenseFFN(16), FFN)
    counts.count(0, ids(ENOUGH))
    assert counts.load() is EVEN
    counts.count(2, ids(ENOUGH))
    assert counts.load() == RoutingLoad(SHARES)


def test_what_was_noted_and_not_counted_yet_is_in_the_load() -> None:
    counts = make(FFN, FFN)
    for layer in (0, 1):
        counts.count(layer, ids(ENOUGH))
    assert counts.load() == RoutingLoad(SHARES)
    counts.count(0, torch.full((4 * ENOUGH, 2), 3, dtype=torch.int32))  # half of a step
    assert counts.load().shares[0] == pytest.approx((0.8 + 0.5) / 2)  # of layer 0's expert 3 and layer 1's expert 0


def test_it_stays_the_same_until_twice_as_much_was_counted() -> None:
    counts = make(FFN)
    counts.count(0, ids(ENOUGH))
    first = counts.load()
    counts.count(0, ids(ENOUGH - 2) + 3)
    assert counts.load() is first
    counts.count(0, ids(LEAST_ROWS) + 3)
    assert sum(share > 0 for share in counts.load().shares) == 6


def test_a_layer_of_which_little_was_seen_is_left_out() -> None:
    """As the last layer, which is finished only for rows that give logits."""
    counts = make(FFN, FFN)
    counts.count(1, torch.full((LEAST_ROWS, 2), 3, dtype=torch.int32))
    counts.count(0, ids(2 * ENOUGH))
    assert counts.load() == RoutingLoad(SHARES)


def test_steps_of_few_rows_are_not_counted() -> None:
    counts = make(FFN)
    for _ in range(ENOUGH):
        counts.count(0, ids(LEAST_ROWS - 2))
    assert counts.load() is EVEN


def test_a_model_without_routers_is_even() -> None:
    assert make(DenseFFN(16)).load() is EVEN


def test_what_a_failed_step_has_noted_is_forgotten() -> None:
    counts = make(FFN)
    counts.count(0, ids(ENOUGH))
    counts.end_step()
    counts.count(0, torch.full((ENOUGH, 2), -1, dtype=torch.int32))  # never written
    counts.forget_step()
    counts.end_step()
    assert counts.load() == RoutingLoad(SHARES)
