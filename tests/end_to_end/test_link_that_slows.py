"""What steps are expected to take follows a link that slows down within a job, and tokens stay the same bits.

Both ways of the link wait for most of a step, which no busy neighbour changes; whatever else a machine does can only
add to it. So what is held is that which waiting alone brings about.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_config import CONFIG

from moelens import LLM, SamplingParams
from moelens.cost.lanes import LaneCosts
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape, Workload
from moelens.machine.emulated import EmulatedMachine
from moelens.offload import price_steps
from moelens.pipeline.task import Resource, Stage
from moelens.planning.pricing import StepPricing
from moelens.planning.simulate import simulate

# Logits keep the way to the host busy for longer than weights do the way to the device, until that has a quarter of its
# bandwidth. No layer stays on the device.
MODEL = {**CONFIG, "num_hidden_layers": 4, "vocab_size": 4096}
DEVICE = "emulated:link=20MB/s,memory=5.7MB"
REQUESTS = 80  # in every step, more than are divided between host and device
STEPS = 14
SLOW_FROM, FEW = 6, 5  # of these: after how many the link slows down, and in how many more that is known
STEP = StepShape(decode_tokens=REQUESTS, decode_context=REQUESTS * STEPS, logit_rows=REQUESTS)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LLM, EmulatedMachine, StepPricing]:
    """A model on an emulated device of which nothing is known but the link, and what is inside of it."""
    inside: dict[str, Any] = {}

    def keep(name: str, make: Callable[..., object]) -> Callable[..., object]:
        return lambda *of: inside.setdefault(name, make(*of))

    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    monkeypatch.setattr("moelens.planning.measured.known_hardware", lambda *_: None)
    monkeypatch.setattr("moelens.offload.EmulatedMachine", keep("machine", EmulatedMachine))
    monkeypatch.setattr("moelens.assembly.price_steps", keep("pricing", price_steps))
    llm = LLM(
        tmp_path,
        device=DEVICE,
        load_format="dummy",
        skip_tokenizer_init=True,
        num_threads=1,
        max_num_seqs=REQUESTS,
        max_num_batched_tokens=REQUESTS,
        use_tqdm_on_load=False,
    )
    return llm, inside["machine"], inside["pricing"]


def tokens(llm: LLM, after_step: Callable[[], None]) -> list[list[int]]:
    llm.engine.on_step = lambda _: after_step()
    prompts = [{"prompt_token_ids": [3 + index]} for index in range(REQUESTS)]
    params = SamplingParams(max_tokens=STEPS, temperature=0, ignore_eos=True, detokenize=False)
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False)]


def test_a_link_with_a_quarter_of_its_bandwidth_is_followed(made: tuple[LLM, EmulatedMachine, StepPricing]) -> None:
    llm, machine, pricing = made
    costs: list[CostModel] = []  # after each step

    def slow_down() -> None:
        costs.append(pricing.cost)
        if len(costs) == STEPS + SLOW_FROM:
            machine.links[Resource.TO_DEVICE].bytes_per_second /= 4

    undisturbed = tokens(llm, lambda: costs.append(pricing.cost))
    assert len(costs) == STEPS
    assert tokens(llm, slow_down) == undisturbed
    before, after = costs[: STEPS + SLOW_FROM], costs[STEPS + SLOW_FROM + FEW :]

    def least(costs: list[CostModel], figure: Callable[[CostModel], float]) -> float:
        return min(figure(cost) for cost in costs)

    def link_scale(cost: CostModel) -> float:
        return cost.scales[Stage.LOAD]

    def next_step(cost: CostModel) -> float:
        return LaneCosts.of(cost).step_seconds([STEP])

    def limit(cost: CostModel) -> Resource:
        return simulate(cost, llm.plan, Workload.even(REQUESTS, 1, STEPS)).limit

    assert least(after, link_scale) > 2 * least(before, link_scale)
    assert least(after, next_step) > 1.2 * least(before, next_step)
    assert limit(min(before, key=link_scale)) is not Resource.TO_DEVICE
    assert Resource.TO_DEVICE in map(limit, after)
