"""Jobs in virtual time: every token is counted, and no schedule beats the bound."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape, Workload
from moelens.errors import CapacityError
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.task import Resource, Stage
from moelens.plan import Plan
from moelens.planning.bound import bound
from moelens.planning.simulate import MOMENTS, StepClock, simulate

LAYER = LayerConfig(GQA(8, 2, 64, 0.125, Rope((1.0,))), MoEFFN(experts=8, active=2, width=1024))
CONFIG = ModelConfig("toy", 512, 1000, (LAYER,) * 4, torch.bfloat16, max_context=4096, tied_embeddings=False)
HOST = Processor("host", 1e11, 1e10, 1e10)
CPU_ONLY = HardwareSpec("cpu", HOST)
BOTH = HardwareSpec("both", HOST, Processor("device", 1e13, 1e12, 1e10), 2e9, 2e9)
PLAN = Plan(step_tokens=128, max_requests=32, kv_blocks=64)


def test_without_preemption_every_row_is_computed_once() -> None:
    workload = Workload((40, 7, 100), (5, 1, 9))
    job = simulate(CostModel(CONFIG, CPU_ONLY), PLAN, workload)
    assert (job.prefill_rows, job.decode_rows, job.preemptions) == (147, 4 + 0 + 8, 0)
    assert (job.prompt_tokens, job.output_tokens) == (147, 15)
    assert job.peak_kv_blocks == 2 + 1 + 4
    assert job.steps == 10  # 128 + 19 rows of prompts, then the longest decodes on: 9 tokens from the second step on
    assert job.seconds == pytest.approx(sum(job.stage_seconds.values()) + job.outside_seconds)


def test_where_ends_are_unknown_a_small_cache_preempts_and_computes_again() -> None:
    plan = dataclasses.replace(PLAN, kv_blocks=12)
    job = simulate(CostModel(CONFIG, CPU_ONLY), plan, Workload.even(8, 30, 100), ends_known=False)
    assert job.preemptions > 0
    assert job.prefill_rows > 8 * 30


def test_a_small_cache_takes_longer_but_computes_nothing_twice() -> None:
    plan = dataclasses.replace(PLAN, kv_blocks=12)
    job = simulate(CostModel(CONFIG, CPU_ONLY), plan, Workload.even(8, 30, 100))
    assert job.preemptions == 0
    assert job.prefill_rows == 8 * 30
    assert job.steps > 1.5 * simulate(CostModel(CONFIG, CPU_ONLY), PLAN, Workload.even(8, 30, 100)).steps
    assert job.peak_kv_blocks <= 12


def test_history_covers_the_job_and_stays_short() -> None:
    job = simulate(CostModel(CONFIG, BOTH), PLAN, Workload.even(20, 10, 700))
    assert len(job.moments) <= 2 * MOMENTS < job.steps
    assert job.moments[0].begin_seconds == 0
    assert job.moments[-1].end_seconds == pytest.approx(job.seconds)
    for before, after in zip(job.moments, job.moments[1:], strict=False):
        assert before.end_seconds == after.begin_seconds
    assert sum(m.decode_tokens for m in job.moments) == job.decode_rows
    for resource in Resource:
        busy = sum(m.busy[resource] * (m.end_seconds - m.begin_seconds) for m in job.moments)
        assert busy == pytest.approx(job.busy_seconds[resource])


def test_a_request_that_never_fits_is_refused() -> None:
    with pytest.raises(CapacityError, match="does not fit"):
        simulate(CostModel(CONFIG, CPU_ONLY), PLAN, Workload.even(1, 2000, 100))


def test_a_scaled_stage_takes_longer_by_as_much() -> None:
    parts = [StepShape(decode_tokens=4, decode_context=400, logit_rows=4)]
    times, stages = StepClock(CostModel(CONFIG, CPU_ONLY), PLAN).times(parts)
    slow = CostModel(CONFIG, CPU_ONLY, scales={Stage.ATTEND_DECODES: 3.0})
    assert StepClock(slow, PLAN).times(parts)[0].seconds - times.seconds == pytest.approx(
        2 * stages[Stage.ATTEND_DECODES]
    )


def test_a_full_memory_slows_the_link() -> None:
    """The paper measured it and did not model it: attention and the streaming of weights share the host's memory."""
    wide = dataclasses.replace(BOTH, host=dataclasses.replace(HOST, bytes_per_second=1e13))
    narrow = dataclasses.replace(BOTH, host=dataclasses.replace(HOST, bytes_per_second=2.5e9))
    slow, fast = (simulate(CostModel(CONFIG, spec), PLAN, Workload.even(30, 200, 20)) for spec in (narrow, wide))
    assert slow.stretched_seconds > 0.01 > fast.stretched_seconds
    assert slow.seconds > fast.seconds


def test_the_link_does_not_pause_where_it_is_the_limit() -> None:
    """A device nearly as busy as the link: a link that pauses for uploads would cost 40 %."""
    device = Processor("device", 1.4e11, 1e13, 1e10)
    spec = dataclasses.replace(BOTH, device=device, host=dataclasses.replace(HOST, bytes_per_second=1e13))
    cost = CostModel(dataclasses.replace(CONFIG, layers=(LAYER,) * 32), spec, load_chunks=8)
    parts = [StepShape(10, 400, 110, 3000, 20)] * 2
    clock = StepClock(cost, dataclasses.replace(PLAN, parts=2, load_chunks=8))
    clock.times(parts)
    times, _ = clock.times(parts)
    busy = times.busy_seconds
    assert 0.5 < busy[Resource.DEVICE] / busy[Resource.TO_DEVICE] < 1
    assert times.seconds < 1.2 * busy[Resource.TO_DEVICE]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([CPU_ONLY, BOTH]),
    st.integers(1, 24),
    st.integers(1, 150),
    st.integers(1, 24),
    st.integers(8, 100),
    st.integers(1, 2),
)
def test_no_schedule_beats_the_bound(
    hardware: HardwareSpec, requests: int, prompt: int, output: int, blocks: int, parts: int
) -> None:
    plan = dataclasses.replace(PLAN, kv_blocks=blocks, parts=parts)
    job = simulate(CostModel(CONFIG, hardware), plan, Workload.even(requests, prompt, output))
    kv_bytes = plan.kv_tokens * CONFIG.kv_bytes_per_token
    most = bound(CONFIG, hardware, kv_bytes=kv_bytes, prompt_tokens=prompt, output_tokens=output)
    assert job.tokens_per_second <= most.tokens_per_second * (1 + 1e-9)
