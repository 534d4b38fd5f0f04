"""Small steps whose rows host and device share are simulated as they are run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.task import Experts, Stage
from moelens.plan import Placement, Plan
from moelens.planning.divided import ExpectedDivision
from moelens.planning.simulate import StepClock

FFN = MoEFFN(experts=64, active=8, width=64)
LAYER = LayerConfig(GQA(4, 2, 16, 0.25, Rope((1.0,))), FFN)
CONFIG = ModelConfig("toy", 64, 100, (LAYER,) * 3, torch.bfloat16, max_context=1024, tied_embeddings=False)
HOST, DEVICE = Processor("host", 1e12, 1e11, 1e10), Processor("device", 1e13, 1e12, 1e9)
PLACEMENT = Placement(True, frozenset(), 2, 1, 1, 1, 1)
SLOW_LINK = CostModel(CONFIG, HardwareSpec("both", HOST, DEVICE, 1e9, 1e9), load_chunks=2, placement=PLACEMENT)
PLAN = Plan(256, 256, 64, load_chunks=2, experts_on_host=True)


def decodes(rows: int) -> StepShape:
    return StepShape(decode_tokens=rows, decode_context=16 * rows, logit_rows=rows)


def test_a_slow_link_has_the_host_finish_rows_of_small_steps_only() -> None:
    division = ExpectedDivision(SLOW_LINK)
    assert {load.experts for load in division.loads(decodes(4))} == {Experts.DIVIDED}
    assert {load.experts for load in division.loads(decodes(65))} == {Experts.WHOLE}


def test_a_fast_link_brings_what_is_needed() -> None:
    fast = replace(SLOW_LINK, hardware=replace(SLOW_LINK.hardware, to_device_bytes_per_second=1e13))
    assert {load.experts for load in ExpectedDivision(fast).loads(decodes(2))} == {Experts.ROUTED}


def test_host_and_link_take_all_rows_between_them() -> None:
    """What the link brings and what the host reads are the experts that each side's rows are expected to go to."""
    division = ExpectedDivision(SLOW_LINK)
    brought, finished = (division.demand(stage, 0, decodes(8)) for stage in (Stage.LOAD_EXPERTS, Stage.FINISH_ROWS))
    each = 3 * 64 * 64 * 2
    host = next(rows for rows in range(9) if each * SLOW_LINK.routing.touched(FFN, rows) == finished.host_bytes)
    assert brought.host_bytes == pytest.approx(each * SLOW_LINK.routing.touched(FFN, 8 - host))
    assert brought.seconds == pytest.approx(brought.host_bytes / 1e9)


def test_steps_are_shorter_where_the_host_helps() -> None:
    alone, helped = (StepClock(SLOW_LINK, replace(PLAN, experts_on_host=on)) for on in (False, True))
    assert helped.seconds([decodes(4)]) < 0.7 * alone.seconds([decodes(4)])
    assert helped.seconds([decodes(100)]) == alone.seconds([decodes(100)])
    assert helped.expect([decodes(4)]).stage_seconds[Stage.FINISH_ROWS] > 0
