"""`LLM` is laid out and runs each call by a plan that suits, says so, and gives the same tokens under every plan."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_config import CONFIG

from moelens import LLM, Plan, SamplingParams, choosing
from moelens.cost.routing import EVEN
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape, Workload
from moelens.forecasting import make_forecast
from moelens.planning import tuning
from moelens.planning.forecast import unmeasured
from moelens.planning.predict import predict
from moelens.planning.simulate import StepClock

PROMPTS = [{"prompt_token_ids": [3 + i % 90, 4, 5]} for i in range(300)]
PARAMS = SamplingParams(max_tokens=6, ignore_eos=True, detokenize=False, temperature=0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *_: None)
    return tmp_path


def make(folder: Path, **arguments: Any) -> LLM:
    own = {"num_threads": 1, **arguments}
    return LLM(folder, load_format="dummy", skip_tokenizer_init=True, use_tqdm_on_load=False, **own)


def tokens(llm: LLM) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


def choose_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is another plan, for jobs of any length."""
    monkeypatch.setattr(choosing, "tune", functools.partial(tuning.tune, least_seconds=0.0))
    monkeypatch.setattr(tuning, "UNMEASURED_WORTH", 0.5)


def test_the_plan_follows_the_call_and_tokens_do_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = make(folder)
    assert usual.plan_reasons == ("laid out by default, as this machine was not measured",)
    before = tokens(usual)
    assert usual.plan.max_requests == 256
    assert "little to do" in usual.plan_reasons[0]
    choose_always(monkeypatch)
    llm = make(folder)
    assert tokens(llm) == before
    assert llm.plan.max_requests >= 300
    assert "times as fast as the default" in llm.plan_reasons[0]
    llm.generate(PROMPTS[:3], PARAMS, use_tqdm=False)
    assert llm.plan.max_requests == 256


def test_a_call_is_expected_by_where_the_rows_of_earlier_ones_went(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *_: unmeasured(1, has_device=False))
    llm = make(folder)
    tokens(llm)
    engine = llm.engine
    assert engine.cost is not None and engine.cost.routing is EVEN and engine.routing is not EVEN
    counted = engine.routing
    tokens(llm)
    assert engine.cost.routing is counted
    assert engine.expect_step is not None
    step = StepShape(3, 12, logit_rows=3)
    assert engine.expect_step([step]) == StepClock(engine.cost, engine.plan).expect([step])
    engine.cost = None  # as on a machine that nobody measured
    guessed, job = CostModel(engine.config, unmeasured(1, has_device=False), counted), Workload.even(3, 4, 5)
    assert make_forecast(engine, job).prediction == predict(guessed, engine.plan, job, most_rows=100)


def test_given_limits_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_always(monkeypatch)
    llm = make(folder, max_num_seqs=7, max_num_batched_tokens=50)
    tokens(llm)
    assert (llm.plan.max_requests, llm.plan.step_tokens) == (7, 50)


def test_memory_is_laid_out_for_many_requests_where_the_machine_was_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *_: unmeasured(1, has_device=False))
    llm = make(folder)
    assert llm.plan.max_requests > 256
    assert llm.plan_reasons[0].startswith("laid out for many requests of ")
    assert "times the default's speed" in llm.plan_reasons[1]
    fixed = make(folder, max_num_seqs=7, max_num_batched_tokens=50, block_size=64)
    assert (fixed.plan.max_requests, fixed.plan.step_tokens, fixed.plan.block_tokens) == (7, 50, 64)
    assert fixed.engine.kv_bytes < llm.engine.kv_bytes


@pytest.mark.parametrize(
    "fixed",
    [
        {},
        {"parts": 2},
        {"ring_layers": 3},
        {"load_chunks": 2},
        {"resident_layers": 1},
        {"experts_on_host": False},
        {"block_size": 96},
        {"max_num_seqs": 9},
        {"max_num_batched_tokens": 400},
    ],
)
def test_a_device_is_planned_around_what_is_fixed(folder: Path, fixed: dict[str, Any]) -> None:
    llm = make(folder, device="emulated:link=1GB/s,memory=40MB", **fixed)
    in_plan = {"block_size": "block_tokens", "max_num_seqs": "max_requests", "max_num_batched_tokens": "step_tokens"}
    assert {name: getattr(llm.plan, in_plan.get(name, name)) for name in fixed} == fixed
    assert llm.plan_reasons[0].startswith("laid out for many requests of ")
    assert llm.plan.experts_on_host == fixed.get("experts_on_host", True)


def test_a_plan_that_is_given_stays(folder: Path) -> None:
    plan = Plan(step_tokens=64, max_requests=8, kv_blocks=40, parts=2, resident_layers=1)
    llm = make(folder, device="emulated:link=1GB/s,memory=40MB", plan=plan, num_threads=None)
    assert (llm.plan, llm.plan_reasons) == (plan, ("laid out by the plan that was given",))
