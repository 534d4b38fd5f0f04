"""`LLM` runs each call by a plan that suits its requests, says so, and gives the same tokens under every plan."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from tiny_config import CONFIG

from moelens import LLM, SamplingParams, choosing
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
    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *_: unmeasured(1, has_device=False))
    return tmp_path


def make(folder: Path, **arguments: int) -> LLM:
    return LLM(
        folder, load_format="dummy", skip_tokenizer_init=True, num_threads=1, use_tqdm_on_load=False, **arguments
    )


def tokens(llm: LLM) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


def test_the_plan_follows_the_call_and_tokens_do_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = make(folder)
    before = tokens(usual)
    assert usual.plan.max_requests == 256
    assert "little to do" in usual.plan_reasons[0]
    monkeypatch.setattr(choosing, "tune", functools.partial(tuning.tune, least_seconds=0.0))
    monkeypatch.setattr(tuning, "WORTH", 0.5)  # whatever is another plan
    llm = make(folder)
    assert tokens(llm) == before
    assert llm.plan.max_requests >= 300
    assert "times as fast as the default" in llm.plan_reasons[0]
    llm.generate(PROMPTS[:3], PARAMS, use_tqdm=False)
    assert llm.plan.max_requests == 256


def test_a_call_is_expected_by_where_the_rows_of_earlier_ones_went(folder: Path) -> None:
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
    monkeypatch.setattr(choosing, "tune", functools.partial(tuning.tune, least_seconds=0.0))
    monkeypatch.setattr(tuning, "WORTH", 0.5)
    llm = make(folder, max_num_seqs=7, max_num_batched_tokens=50)
    tokens(llm)
    assert (llm.plan.max_requests, llm.plan.step_tokens) == (7, 50)
