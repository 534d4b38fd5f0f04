"""A link that becomes slower in the middle of a run is noticed within a few steps, and changes no token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_config import CONFIG

from moelens import LLM, SamplingParams
from moelens.machine import emulated
from moelens.pipeline.task import Stage
from moelens.planning.pricing import StepPricing

PROMPTS = [{"prompt_token_ids": [3 + index, 4, 5, 6]} for index in range(6)]
STEPS = 14


class SlowingLink(emulated.ThrottledLink):
    """Four times as slow from the time on that `is_slow` is set."""

    is_slow = False

    def run(self, act: emulated.Act, ready_seconds: float) -> int:
        moved = 4 if SlowingLink.is_slow else 1
        return super().run(lambda: moved * act(), ready_seconds)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr(emulated, "ThrottledLink", SlowingLink)
    monkeypatch.setattr(SlowingLink, "is_slow", False)
    return tmp_path


def run(folder: Path, slow_from: int | None) -> tuple[list[tuple[int, ...]], list[float]]:
    """Tokens, and after each step the seconds that a load is expected to take over those declared."""
    llm = LLM(
        folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        num_threads=1,
        use_tqdm_on_load=False,
        max_num_batched_tokens=32,
        max_num_seqs=8,
        device="emulated:link=5MB/s,memory=500kB",
    )
    pricing, scales = llm.engine._pricing, []
    assert isinstance(pricing, StepPricing)

    def on_step(*_: object) -> None:
        scales.append(pricing.cost.scales.get(Stage.LOAD, 1.0))
        SlowingLink.is_slow = slow_from is not None and len(scales) >= slow_from

    params = SamplingParams(max_tokens=STEPS, ignore_eos=True, detokenize=False, temperature=0)
    llm.engine.on_step = on_step
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs], scales


def test_a_slowed_link_is_noticed_and_tokens_stay(folder: Path) -> None:
    steady, _ = run(folder, None)
    slowed, scales = run(folder, slow_from=6)
    assert slowed == steady
    assert scales[-1] > 2 * scales[5]
