"""What the steps of a model are expected to take is counted beside what they took, on a machine that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_config import CONFIG

from moelens import LLM, SamplingParams
from moelens.planning.forecast import unmeasured


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
