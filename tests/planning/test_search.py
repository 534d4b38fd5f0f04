"""The chosen plan keeps what was fixed, is never expected to be slower than the default, and says why."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.errors import CapacityError
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.planning.advice import sizes_of
from moelens.planning.default import Limits, choose_plan
from moelens.planning.predict import predict
from moelens.planning.search import choose, saturating_step_tokens

LAYER = LayerConfig(GQA(8, 2, 64, 0.125, Rope((1.0,))), MoEFFN(experts=64, active=2, width=512))
CONFIG = ModelConfig("toy", 512, 1000, (LAYER,) * 4, torch.bfloat16, max_context=4096, tied_embeddings=False)
HOST = Processor("host", 4e11, 2e10, 1e11)
CPU_ONLY = CostModel(CONFIG, HardwareSpec("cpu", HOST))
DEVICE = Processor("device", 1e13, 1e12, 3e8)
BOTH = CostModel(CONFIG, HardwareSpec("both", HOST, DEVICE, 1e10, 1e10))
LIMITS = Limits(memory_bytes=10**11, max_model_len=400)
WORKLOAD = Workload.even(1500, 100, 20)


def test_many_requests_at_once_are_chosen_where_experts_are_many() -> None:
    choice = choose(CPU_ONLY, sizes_of(CONFIG), LIMITS, 3, WORKLOAD)
    assert choice.plan.max_requests > 256
    assert choice.plan.threads == 3
    usual, _ = choose_plan(CONFIG, sizes_of(CONFIG), LIMITS, 3)
    assert choice.prediction.seconds * 1.01 < predict(CPU_ONLY, usual, WORKLOAD).seconds
    assert "times the default's speed" in choice.reasons[0]


@pytest.mark.parametrize("fixed", [{"max_requests": 32}, {"step_tokens": 512}, {"kv_bytes": 2**22}])
def test_what_the_user_fixed_is_kept(fixed: dict[str, int]) -> None:
    limits = dataclasses.replace(LIMITS, **fixed)
    plan = choose(CPU_ONLY, sizes_of(CONFIG), limits, 1, Workload.even(100, 100, 20)).plan
    assert plan.max_requests == fixed.get("max_requests", plan.max_requests)
    assert plan.step_tokens == fixed.get("step_tokens", plan.step_tokens)
    assert plan.kv_tokens * CONFIG.kv_bytes_per_token <= fixed.get("kv_bytes", 10**11)


def test_the_default_stays_where_nothing_gains() -> None:
    choice = choose(CPU_ONLY, sizes_of(CONFIG), LIMITS, 1, Workload.even(4, 100, 50))
    assert choice.plan == choose_plan(CONFIG, sizes_of(CONFIG), LIMITS, 1)[0]
    assert "the default" in choice.reasons[0]


def test_on_a_device_steps_are_measured_by_what_saturates_it() -> None:
    cost = dataclasses.replace(BOTH, load_chunks=8)
    tokens = saturating_step_tokens(cost)
    by_hand = 2 * 3 * 512 * 512 * 64 / 1e10 / ((6 * 512 * 512 * 2 + 2 * 512 * (768 + 512 + 64)) / 1e13)
    assert tokens == pytest.approx(by_hand, rel=0.05)
    choice = choose(BOTH, sizes_of(CONFIG), LIMITS, 1, Workload.even(300, 100, 10))
    assert choice.placement is not None and choice.placement.device_bytes <= 3e8
    assert any("n_real" in reason for reason in choice.reasons)


def test_a_device_that_holds_nothing_is_refused() -> None:
    small = dataclasses.replace(BOTH.hardware, device=dataclasses.replace(DEVICE, memory_bytes=1e6))
    with pytest.raises(CapacityError, match="device's memory"):
        choose(dataclasses.replace(BOTH, hardware=small), sizes_of(CONFIG), LIMITS, 1, WORKLOAD)
