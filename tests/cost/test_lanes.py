"""Steps in closed form: near the simulated ones, and the number of parts that is best on clocks."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.lanes import LaneCosts
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape
from moelens.models.config import GQA, DenseFFN, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.task import Stage
from moelens.plan import Plan
from moelens.planning.simulate import StepClock

ATTENTION = GQA(16, 8, 128, 0.09, Rope((1.0,)))
MOE = LayerConfig(ATTENTION, MoEFFN(experts=32, active=4, width=768))
CONFIG = ModelConfig("toy", 1024, 32000, (MOE,) * 11, torch.bfloat16, max_context=4096, tied_embeddings=False)
PLAN = Plan(step_tokens=4096, max_requests=4096, kv_blocks=10, load_chunks=8)


def machines(count: int) -> list[HardwareSpec]:
    """Ones in which device, host or link may be the slowest, by a factor of up to about thirty."""
    random_ = random.Random(7)
    made = []
    for _ in range(count):
        device = Processor("device", 10 ** random_.uniform(11.5, 13.5), 10 ** random_.uniform(10.8, 11.8), 8e8, 3e-5)
        host = Processor("host", 10 ** random_.uniform(11.3, 12.3), 10 ** random_.uniform(10.3, 11.3), 1e11, 1e-5)
        link = 10 ** random_.uniform(9.5, 10.5)
        made.append(HardwareSpec("some", host, device, link, link))
    return made


def simulated(cost: CostModel, parts: list[StepShape]) -> float:
    clock = StepClock(cost, PLAN)
    clock.times(parts)  # whose last loads run on
    return clock.times(parts)[0].seconds


@pytest.mark.parametrize("hardware", machines(8))
@pytest.mark.parametrize("shape", [(256, 500, 0), (64, 4000, 256), (300, 2000, 64), (16, 100, 1024)])
def test_the_chosen_number_of_parts_is_the_best_on_clocks(hardware: HardwareSpec, shape: tuple[int, int, int]) -> None:
    decodes, context, prompts = shape
    whole = StepShape(decodes, decodes * context, prompts, prompts * 32, decodes + prompts // 64)
    cost = CostModel(CONFIG, hardware, load_chunks=PLAN.load_chunks)
    seconds = {parts: simulated(cost, whole.cut(parts)) for parts in (1, 2, 3)}
    chosen = LaneCosts.of(cost).best_parts(whole, 3)
    assert seconds[chosen] <= 1.03 * min(seconds.values()), seconds


def test_without_a_device_a_step_is_one_part_and_the_sum_of_its_stages() -> None:
    cost = CostModel(CONFIG, HardwareSpec("cpu", Processor("host", 1e11, 1e10, 1e10)))
    lanes, shape = LaneCosts.of(cost), StepShape(8, 800, 16, 136, 9)
    assert lanes.best_parts(shape, 4) == 1
    assert lanes.step_seconds([shape]) == pytest.approx(simulated(cost, [shape]))


def test_rows_share_what_their_stages_take() -> None:
    dense = replace(CONFIG, layers=(LayerConfig(ATTENTION, DenseFFN(4096)), *CONFIG.layers))
    lanes = LaneCosts.of(CostModel(dense, machines(1)[0]))
    shape = StepShape(3, 3 * 41, 20 + 30, 20 * 21 // 2 + 30 * 10 + 30 * 31 // 2, 5, 30, 30 * 10 + 30 * 31 // 2)
    rows, stages = lanes.row_seconds(shape), lanes.stage_seconds(shape)
    requests = [(1, 40)] * 3 + [(20, 0), (30, 10)]
    device, host, up, down = map(sum, zip(*(rows.of(*request) for request in requests), strict=True))
    of_device = (Stage.BEFORE_ATTENTION, Stage.ATTEND_PREFILLS, Stage.AFTER_ATTENTION)
    assert device == pytest.approx(sum(stages[stage] for stage in of_device))
    of_host = (Stage.STORE_KV, Stage.ATTEND_DECODES, Stage.ATTEND_RESUMED)
    assert host == pytest.approx(sum(stages[stage] for stage in of_host))
    assert (up, down) == pytest.approx((stages[Stage.UPLOAD], stages[Stage.OFFLOAD]))
