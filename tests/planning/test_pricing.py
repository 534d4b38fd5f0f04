"""Prices follow what steps are measured to take."""

from __future__ import annotations

import pytest
import torch

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.lanes import LaneCosts
from moelens.cost.routing import EVEN
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.task import Stage
from moelens.planning.pricing import StepPricing

LAYER = LayerConfig(GQA(8, 2, 64, 0.125, Rope((1.0,))), MoEFFN(experts=8, active=2, width=1024))
CONFIG = ModelConfig("toy", 512, 1000, (LAYER,) * 4, torch.bfloat16, max_context=4096, tied_embeddings=False)
HARDWARE = HardwareSpec("both", Processor("host", 1e11, 1e10, 1e10), Processor("device", 1e13, 1e12, 1e10), 2e10, 2e10)
SHAPE = StepShape(64, 64 * 3000, 64, 64 * 20, 66)


def test_a_slow_host_shows_in_rows_and_parts() -> None:
    cost = CostModel(CONFIG, HARDWARE)
    pricing, before = StepPricing(cost), LaneCosts.of(cost)
    assert pricing.row_seconds(SHAPE) == before.row_seconds(SHAPE)
    parts = SHAPE.cut(2)
    taken = {stage: sum(before.stage_seconds(part).get(stage, 0.0) for part in parts) for stage in Stage}
    for _ in range(3):
        pricing.observe(parts, {**taken, Stage.ATTEND_DECODES: 5 * taken[Stage.ATTEND_DECODES]}, EVEN)
    assert pricing.row_seconds(SHAPE).host_key == pytest.approx(5 * before.row_seconds(SHAPE).host_key)
    assert pricing.row_seconds(SHAPE).device_row == pytest.approx(before.row_seconds(SHAPE).device_row)


def test_parts_are_chosen_by_what_was_measured() -> None:
    """Expected to be bound by the link, where parts gain nothing; measured to have host and device equally busy."""
    cost = CostModel(CONFIG, HARDWARE)
    pricing, lanes = StepPricing(cost), LaneCosts.of(cost)
    stages = lanes.stage_seconds(SHAPE)
    balanced = dict.fromkeys(Stage, 0.0) | {Stage.AFTER_ATTENTION: 1.0, Stage.ATTEND_DECODES: 1.0, Stage.LOAD: 0.1}
    pricing.observe([SHAPE], {stage: balanced.get(stage) or own for stage, own in stages.items()} | balanced, EVEN)
    assert pricing.best_parts(SHAPE, 3) > 1
    device_only = {**balanced, Stage.ATTEND_DECODES: 1e-6, Stage.LOAD: 1e-6}
    for _ in range(40):
        pricing.observe([SHAPE], device_only, EVEN)
    assert pricing.best_parts(SHAPE, 3) == 1
