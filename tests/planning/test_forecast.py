"""A forecast is there before the first step, follows what is measured, and shortens as requests end early."""

from __future__ import annotations

from array import array

import pytest
import torch

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape, Workload
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.pipeline.report import StepReport
from moelens.pipeline.task import Stage
from moelens.plan import Plan
from moelens.planning.forecast import STEPS, Forecast, unmeasured
from moelens.planning.simulate import StepClock, simulate
from moelens.request import Request
from moelens.sampling_params import SamplingParams

LAYER = LayerConfig(GQA(8, 2, 64, 0.125, Rope((1.0,))), MoEFFN(experts=8, active=2, width=1024))
CONFIG = ModelConfig("toy", 512, 1000, (LAYER,) * 3, torch.bfloat16, max_context=4096, tied_embeddings=False)
COST = CostModel(CONFIG, HardwareSpec("cpu", Processor("host", 1e11, 1e10, 1e10), step_seconds=1e-3))
PLAN = Plan(step_tokens=128, max_requests=32, kv_blocks=640)
WORKLOAD = Workload.even(20, 50, 30)
DECODES = [StepShape(decode_tokens=20, decode_context=1200, logit_rows=20)]


def make(is_measured: bool = True, cost: CostModel = COST) -> Forecast:
    return Forecast(cost, PLAN, WORKLOAD, is_measured=is_measured)


def observe(forecast: Forecast, steps: int, factor: float = 1.0, stage: Stage | None = None) -> float:
    """Steps of decodes that take `factor` times what was expected, in `stage` or in all."""
    clock = StepClock(COST, PLAN)
    _, expected = clock.times(DECODES)
    measured = {one: s * (factor if stage in (None, one) else 1.0) for one, s in expected.items()}
    seconds = sum(measured.values()) + clock.outside_seconds(DECODES)
    for _ in range(steps):
        forecast.observe(StepReport(DECODES, (), 20, seconds, measured))
    return steps * seconds


def test_it_is_there_before_the_first_step_where_the_machine_was_measured() -> None:
    job = simulate(COST, PLAN, WORKLOAD)
    assert make().remaining_seconds == pytest.approx(job.seconds)
    assert make().tokens_per_second == pytest.approx(job.tokens_per_second)
    assert make().text().startswith(f"predicted: {job.tokens_per_second:.2f} toks/s, 00:0")


def test_an_unknown_machine_is_known_after_a_few_steps() -> None:
    unknown = CostModel(CONFIG, unmeasured(2, has_device=False))
    forecast = make(is_measured=False, cost=unknown)
    assert forecast.text() == ""
    observe(forecast, STEPS)
    assert forecast.text() != ""


def test_steps_as_expected_leave_the_rest_as_expected() -> None:
    forecast = make()
    total = forecast.remaining_seconds
    assert total is not None
    taken = observe(forecast, 5)
    assert forecast.remaining_seconds == pytest.approx(total - taken, rel=0.01)


@pytest.mark.parametrize("stage", [None, Stage.AFTER_ATTENTION])
def test_a_slower_machine_is_followed_within_a_few_steps(stage: Stage | None) -> None:
    forecast, undisturbed = make(), make()
    for one in (forecast, undisturbed):
        observe(one, 5)
    observe(forecast, 8, factor=2.0, stage=stage)
    observe(undisturbed, 8)
    assert forecast.remaining_seconds is not None and undisturbed.remaining_seconds is not None
    assert forecast.remaining_seconds > 1.2 * undisturbed.remaining_seconds
    assert forecast.scales[Stage.AFTER_ATTENTION] == pytest.approx(2.0, rel=0.2)
    others = forecast.scales[Stage.BEFORE_ATTENTION]
    assert others == pytest.approx(2.0 if stage is None else 1.0, rel=0.2)


def test_requests_that_end_early_shorten_the_rest() -> None:
    forecast, patient = make(), make()
    request = Request(0, array("i", range(50)), SamplingParams(max_tokens=30), seed=0)
    request.output_token_ids.extend([1] * 6)
    for one in (forecast, patient):
        observe(one, 2)
    forecast.observe(StepReport(DECODES, [request], 20, 0.0, {}))
    patient.observe(StepReport(DECODES, (), 20, 0.0, {}))
    assert forecast.remaining_seconds is not None and patient.remaining_seconds is not None
    assert forecast.remaining_seconds < 0.8 * patient.remaining_seconds


def test_a_job_that_may_not_fit_is_not_foretold() -> None:
    forecast = Forecast(COST, PLAN, Workload.even(1, 3000, 30_000), is_measured=True)
    assert forecast.text() == ""
    observe(forecast, 5)
    assert forecast.text() == ""
