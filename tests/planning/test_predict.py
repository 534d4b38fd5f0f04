"""The closed form stays near the simulator, which is its reference, and becomes stage 1 in the limit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.task import Stage
from moelens.plan import Plan
from moelens.planning.bound import served_per_held_token
from moelens.planning.predict import Flow, _held_blocks, memory_bytes, predict, steady
from moelens.planning.simulate import simulate

LAYER = LayerConfig(GQA(8, 2, 64, 0.125, Rope((1.0,))), MoEFFN(experts=8, active=2, width=1024))
CONFIG = ModelConfig("toy", 512, 1000, (LAYER,) * 4, torch.bfloat16, max_context=4096, tied_embeddings=False)
HOST = Processor("host", 1e11, 1e10, 1e10)
CPU_ONLY = CostModel(CONFIG, HardwareSpec("cpu", HOST))
BOTH = CostModel(CONFIG, HardwareSpec("both", HOST, Processor("device", 1e13, 1e12, 1e10), 2e9, 2e9))


@pytest.mark.parametrize("cost", [CPU_ONLY, BOTH])
@pytest.mark.parametrize(
    ("requests", "prompt", "output", "blocks"),
    [(400, 100, 40, 256), (400, 30, 60, 10_000), (60, 200, 20, 10_000), (300, 100, 50, 256)],
)
def test_the_closed_form_is_near_the_simulator(
    cost: CostModel, requests: int, prompt: int, output: int, blocks: int
) -> None:
    plan = Plan(step_tokens=256, max_requests=64, kv_blocks=blocks)
    workload = Workload.even(requests, prompt, output)
    reference, closed = simulate(cost, plan, workload), steady(cost, plan, workload)
    assert closed.seconds == pytest.approx(reference.seconds, rel=0.2)
    assert closed.prefill_rows == pytest.approx(requests * prompt, rel=0.02)
    assert closed.decode_rows == pytest.approx(requests * (output - 1), rel=0.1)


def test_a_small_job_is_simulated_and_a_large_one_is_not() -> None:
    plan = Plan(step_tokens=256, max_requests=64, kv_blocks=10_000)
    workload = Workload.even(20, 10, 10)
    assert predict(CPU_ONLY, plan, workload).seconds == simulate(CPU_ONLY, plan, workload).seconds
    assert predict(CPU_ONLY, plan, workload, most_rows=10).seconds == steady(CPU_ONLY, plan, workload).seconds


def test_memory_that_nobody_wrote_before_makes_storing_longer_in_both_forms() -> None:
    plan, workload = Plan(step_tokens=256, max_requests=64, kv_blocks=10_000), Workload.even(400, 100, 40)
    dear = replace(CPU_ONLY, hardware=replace(CPU_ONLY.hardware, fresh_seconds_per_byte=1e-6))
    for form in (simulate, steady):
        before, after = form(CPU_ONLY, plan, workload), form(dear, plan, workload)
        longer = after.stage_seconds[Stage.STORE_KV] - before.stage_seconds[Stage.STORE_KV]
        assert longer == pytest.approx(after.seconds - before.seconds)
        assert longer > 1


@given(st.integers(1, 200), st.integers(1, 300), st.sampled_from([32, 64, 96]))
def test_held_blocks_are_the_sum_that_it_says(prompt: int, output: int, block: int) -> None:
    assert _held_blocks(prompt, output, block) == sum(-(-(prompt + j) // block) for j in range(output))


def test_without_an_end_it_is_stage_1() -> None:
    """Blocks small beside the requests, nothing kept in reserve: q·(p+g) rows are PME·M."""
    plan = Plan(step_tokens=10**9, max_requests=10**6, kv_blocks=10**7)
    flow = Flow.of(plan, Workload.even(10**6, 20_000, 5_000))
    rows = flow.per_pass * (flow.prompt + flow.output)
    assert rows == pytest.approx(served_per_held_token(20_000, 5_000) * plan.kv_tokens, rel=0.01)


def test_memory_by_purpose() -> None:
    plan = Plan(step_tokens=256, max_requests=64, kv_blocks=100)
    assert memory_bytes(CONFIG, plan)["key/value cache"] == 100 * 32 * 4 * 2 * 2 * 64 * 2
    assert memory_bytes(CONFIG, plan, block_bytes=7)["key/value cache"] == 700
