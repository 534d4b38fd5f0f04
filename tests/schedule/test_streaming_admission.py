"""How many rows of prompts a step takes follows what its lanes are measured to take, where the cache is short."""

from __future__ import annotations

from array import array
from dataclasses import replace

import torch

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.lanes import LaneCosts
from moelens.cost.routing import EVEN
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.task import Stage
from moelens.plan import Plan
from moelens.planning.pricing import StepPricing
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.schedule.scheduler import LEAST_OF_STEP, Scheduler

LAYER = LayerConfig(GQA(8, 2, 64, 0.125, Rope((1.0,))), MoEFFN(experts=8, active=2, width=1024))
CONFIG = ModelConfig("toy", 512, 1000, (LAYER,) * 4, torch.bfloat16, max_context=4096, tied_embeddings=False)
HOST, DEVICE = Processor("host", 1e11, 1e11, 1e10), Processor("device", 1e13, 1e12, 1e10)
COST = CostModel(CONFIG, HardwareSpec("both", HOST, DEVICE, 5e10, 5e10))
PLAN = Plan(2048, max_requests=512, kv_blocks=200, parts=3, choose_parts=True, share_prefixes=False)
SHAPE = StepShape(64, 64 * 40, 256, 256 * 16, 66)


def prompt_rows(pricing: StepPricing, requests: int = 300, plan: Plan = PLAN) -> int:
    """Of the first step of many requests."""
    scheduler = Scheduler(plan, lambda request: False, pricing)
    for index in range(requests):
        params = SamplingParams(max_tokens=8, ignore_eos=True)
        scheduler.add(Request(index, array("i", [index] * 24), params, seed=0))
    return sum(chunk.count for group in scheduler.next_chunks() for chunk in group)


def observe(pricing: StepPricing, steps: int, slower: dict[Stage, float]) -> None:
    lanes = LaneCosts.of(COST)
    taken = {**lanes.stage_seconds(SHAPE), Stage.LOAD: lanes.load_seconds}
    for _ in range(steps):
        pricing.observe([SHAPE], {stage: own * slower.get(stage, 1.0) for stage, own in taken.items()}, EVEN)


def test_a_slower_link_leaves_time_for_more_prompts_and_a_slower_device_for_fewer() -> None:
    pricing = StepPricing(COST)
    observe(pricing, 5, {})
    before = prompt_rows(pricing)
    assert PLAN.step_tokens // LEAST_OF_STEP < before < PLAN.step_tokens // 2
    observe(pricing, 8, {Stage.LOAD: 2.0})  # the link's bandwidth is halved
    slow_link = prompt_rows(pricing)
    assert slow_link > 1.5 * before
    device = dict.fromkeys((Stage.BEFORE_ATTENTION, Stage.AFTER_ATTENTION), 4.0)
    observe(pricing, 12, {Stage.LOAD: 2.0, **device})
    assert prompt_rows(pricing) < slow_link / 2


def test_a_cache_that_holds_all_takes_as_many_rows_as_a_step_may_have() -> None:
    plan = Plan(2048, max_requests=512, kv_blocks=2000, parts=3, choose_parts=True, share_prefixes=False)
    assert prompt_rows(StepPricing(COST), plan=plan) == 2048


def test_a_given_number_of_parts_leaves_limits_as_they_are_given() -> None:
    plan = Plan(2048, max_requests=512, kv_blocks=200, parts=3, share_prefixes=False)
    assert prompt_rows(StepPricing(COST), plan=plan) > 1.5 * prompt_rows(StepPricing(COST))


def test_rows_that_are_free_take_no_longer_than_the_weights() -> None:
    lanes = LaneCosts.of(COST)
    rows = lanes.free_prompt_rows(StepShape(), 4096)
    seconds = lanes.stage_seconds(StepShape(prefill_tokens=rows, prefill_pairs=rows, logit_rows=1))
    of_device = seconds[Stage.BEFORE_ATTENTION] + seconds[Stage.AFTER_ATTENTION] + seconds[Stage.ATTEND_PREFILLS]
    assert 0.98 * lanes.load_seconds < of_device <= lanes.load_seconds


def test_a_step_of_few_rows_has_one_for_prompts_however_slow_the_device() -> None:
    slow = replace(COST, hardware=replace(COST.hardware, device=Processor("device", 1e6, 1e6, 1e10)))
    assert StepPricing(slow).free_prompt_rows(StepShape(), 1) == 0
    plan = replace(PLAN, step_tokens=LEAST_OF_STEP - 1, max_requests=1, kv_blocks=5)
    assert prompt_rows(StepPricing(slow), plan=plan) == 1
