"""The chosen plan keeps what was fixed, fits, is never expected to be slower than the default, and says why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.errors import CapacityError
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.plan import Streaming
from moelens.planning.advice import read_model, sizes_of
from moelens.planning.catalogue import named_hardware
from moelens.planning.default import Limits, choose_plan
from moelens.planning.device import fit, for_device
from moelens.planning.predict import memory_bytes, predict
from moelens.planning.search import choose, device_sizes, saturating_step_tokens

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


@pytest.mark.parametrize(
    "fixed",
    [
        {"parts": 1},
        {"parts": 4},
        {"ring_layers": 3},
        {"load_chunks": 5},
        {"resident_layers": 0},
        {"resident_layers": 2},
        {"experts_on_host": True},
        {"parts": 2, "ring_layers": 4, "resident_layers": 1},
    ],
)
def test_what_the_user_fixed_of_streaming_is_kept(fixed: dict[str, Any]) -> None:
    limits = dataclasses.replace(LIMITS, streaming=Streaming(**fixed))
    room = device_sizes(CONFIG, 480_000_000)  # for all four layers beside steps of some hundred rows
    choice = choose(BOTH, sizes_of(CONFIG), limits, 1, WORKLOAD, device=room, simulated_rows=0)
    assert {name: getattr(choice.plan, name) for name in fixed} == fixed
    assert not (choice.plan.choose_parts and "parts" in fixed)
    assert choice.placement is not None and choice.placement.device_bytes <= room.memory_bytes
    assert len(choice.placement.layers) == fixed.get("resident_layers", len(choice.placement.layers))


@pytest.mark.parametrize("block_tokens", [32, 64, 128])
def test_blocks_have_the_size_that_was_fixed(block_tokens: int) -> None:
    sizes = sizes_of(CONFIG, block_tokens)
    limits = dataclasses.replace(LIMITS, kv_bytes=2**24)
    plan = choose(CPU_ONLY, sizes, limits, 1, WORKLOAD, simulated_rows=0).plan
    assert plan.block_tokens == block_tokens
    assert plan.kv_blocks == 2**24 // (CONFIG.kv_bytes_per_token * block_tokens)


@pytest.mark.parametrize("hardware", ["a40-paper", "rtx4090"])
@pytest.mark.parametrize("model", ["Mixtral-8x7B", "DBRX"])
@pytest.mark.parametrize("output", [32, 256])
def test_no_choice_is_expected_to_be_slower_than_the_default_or_too_large(
    hardware: str, model: str, output: int
) -> None:
    spec, config = named_hardware(hardware), read_model(model).config
    cost, workload = CostModel(config, spec), Workload.even(20_000, 100, output)
    assert spec.device is not None
    limits = Limits(memory_bytes=int(0.9 * spec.host.memory_bytes), max_model_len=400)
    device = device_sizes(config, int(spec.device.memory_bytes))
    choice = choose(cost, sizes_of(config), limits, 1, workload)
    usual, _ = choose_plan(config, sizes_of(config), limits, 1)
    usual, placement = fit(for_device(usual, device, limits.streaming), config, device, limits)
    own = dataclasses.replace(cost, load_chunks=usual.load_chunks, placement=placement, disk_layers=usual.disk_layers)
    assert choice.prediction.seconds <= predict(own, usual, workload).seconds
    assert choice.placement is not None and choice.placement.device_bytes <= spec.device.memory_bytes
    assert sum(memory_bytes(config, choice.plan).values()) <= limits.memory_bytes


@pytest.mark.parametrize(("share", "requests", "more"), [(0.8, 4096, True), (0.95, 256, False)])
def test_weights_on_disk_are_weighed_against_the_cache(share: float, requests: int, more: bool) -> None:
    hardware = dataclasses.replace(CPU_ONLY.hardware, disk_bytes_per_second=1e8)
    config = dataclasses.replace(CONFIG, layers=(LAYER,) * 40)
    cost, sizes = CostModel(config, hardware), sizes_of(config)
    limits = Limits(int(share * sizes.weight_bytes), max_model_len=400, max_requests=requests, step_tokens=4096)
    usual, _ = choose_plan(config, sizes, limits, 1)
    workload = Workload.even(8000, 100, 200)
    choice = choose(cost, sizes, limits, 1, workload)
    assert (len(choice.plan.disk_layers) > len(usual.disk_layers)) == more
    assert (choice.plan.kv_tokens > usual.kv_tokens) == more
    assert choice.plan != usual
    assert sum(memory_bytes(config, choice.plan).values()) <= limits.memory_bytes
    fixed = dataclasses.replace(limits, kv_bytes=usual.kv_blocks * sizes.block_bytes)
    assert choose(cost, sizes, fixed, 1, workload).plan.kv_blocks == usual.kv_blocks


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
