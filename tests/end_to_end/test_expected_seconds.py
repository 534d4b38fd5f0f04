"""What the steps of a model are expected to take is counted beside what they took, on a machine that was measured."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
from tiny_config import CONFIG

from moelens import LLM, SamplingParams
from moelens.cost.workload import Workload
from moelens.devices import parse_device
from moelens.forecasting import forecasting
from moelens.offload import price_steps
from moelens.planning.forecast import unmeasured
from moelens.planning.pricing import StepPricing
from moelens.planning.simulate import StepClock
from moelens.request import Request


def metrics_of(folder: Path) -> dict[str, float]:
    llm = LLM(folder, load_format="dummy", skip_tokenizer_init=True, num_threads=1, use_tqdm_on_load=False)
    prompts = [{"prompt_token_ids": [3, 4, 5]}]
    llm.generate(prompts, SamplingParams(max_tokens=3, ignore_eos=True, detokenize=False), use_tqdm=False)
    return {metric.name: metric.value for metric in llm.get_metrics()}


def test_steps_are_foretold_where_the_machine_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *_: None)
    assert "moelens:expected_seconds" not in metrics_of(tmp_path)
    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *_: unmeasured(1, has_device=False))
    metrics = metrics_of(tmp_path)
    assert metrics["moelens:steps"] == 3
    assert metrics["moelens:expected_seconds"] > 0


def test_a_bar_and_the_counts_ask_once_what_a_step_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *_: unmeasured(1, has_device=False))
    asked: list[int] = []
    times = StepClock.times
    llm = LLM(tmp_path, load_format="dummy", skip_tokenizer_init=True, num_threads=1, use_tqdm_on_load=False)
    with forecasting(llm.engine, Workload.even(1, 3, 3), wanted=True):  # predicts the job, on a clock of its own
        monkeypatch.setattr(StepClock, "times", lambda clock, parts: (asked.append(1), times(clock, parts))[1])
        llm.engine.add(Request(0, array("i", [3, 4, 5]), SamplingParams(max_tokens=3, ignore_eos=True), seed=0))
        assert len(list(llm.engine.run())) == 3
    assert len(asked) == 3


def test_a_device_is_foretold_by_its_own_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    asked: list[object] = []
    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *of: asked.append(of[-1]))
    text = "emulated:link=1GB/s,memory=40MB"
    LLM(tmp_path, load_format="dummy", skip_tokenizer_init=True, num_threads=1, use_tqdm_on_load=False, device=text)
    assert asked[0] == parse_device(text)


def test_a_device_prices_its_first_steps_as_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    measured = unmeasured(1, has_device=True, link_bytes_per_second=123e6)
    priced: list[StepPricing | None] = []

    def price(*of: Any) -> StepPricing | None:
        priced.append(price_steps(*of))
        return priced[-1]

    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *_: measured)
    monkeypatch.setattr("moelens.assembly.price_steps", price)
    text = "emulated:link=1GB/s,memory=40MB"
    LLM(tmp_path, load_format="dummy", skip_tokenizer_init=True, num_threads=1, use_tqdm_on_load=False, device=text)
    assert priced[0] is not None and priced[0].cost.hardware is measured
