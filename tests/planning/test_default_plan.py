"""The default plan fits what it is given, or says why it can't."""

import pytest
import torch

from moelens.cost.footprint import activation_bytes
from moelens.errors import CapacityError, ConfigError
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN, Rope
from moelens.planning.default import Limits, Sizes, choose_plan

ROPE = Rope((1.0, 0.1))
LAYER = LayerConfig(GQA(4, 2, 4, 0.5, ROPE), MoEFFN(experts=8, active=2, width=16))
CONFIG = ModelConfig("toy", 16, 100, (LAYER,) * 3, torch.bfloat16, max_context=1024, tied_embeddings=False)
SIZES = Sizes(weight_bytes=1_000_000, block_bytes=10_000)


def test_the_cache_takes_what_is_left_and_no_more_than_the_requests_can_use() -> None:
    plan, length = choose_plan(CONFIG, SIZES, Limits(memory_bytes=10**12), threads=3)
    assert (plan.max_requests, plan.step_tokens, plan.threads, length) == (256, 8192, 3, 1024)
    assert plan.kv_blocks == 256 * 1024 // 32
    memory = 1_000_000 + activation_bytes(CONFIG, 2048) + 75 * 10_000 + 9_999
    plan, _ = choose_plan(CONFIG, SIZES, Limits(memory_bytes=memory), threads=1)
    assert (plan.kv_blocks, plan.step_tokens) == (75, 2048)


def test_steps_are_as_large_as_an_eighth_of_the_memory_beside_weights_allows() -> None:
    for rows in (4096, 8192):
        memory = SIZES.weight_bytes + 8 * activation_bytes(CONFIG, rows)
        plan, _ = choose_plan(CONFIG, SIZES, Limits(memory_bytes=memory), threads=1)
        assert plan.step_tokens == rows
        plan, _ = choose_plan(CONFIG, SIZES, Limits(memory_bytes=memory - 8), threads=1)
        assert plan.step_tokens == rows // 2


def test_what_the_user_fixed_is_kept() -> None:
    limits = Limits(10**12, max_model_len=100, max_requests=4, step_tokens=8, kv_bytes=105_000)
    plan, length = choose_plan(CONFIG, SIZES, limits, threads=1)
    assert (plan.max_requests, plan.step_tokens, plan.kv_blocks, length) == (4, 8, 10, 100)


def test_activations_count_experts_and_logits() -> None:
    per_row = 2 * 16 * 4 + 8 * 16 * 2 + 2 * (2 * 16 * 2 + 4 * 16)
    assert activation_bytes(CONFIG, 1000) == 1000 * per_row + 2 * 256 * 100 * 4


def test_a_cache_shorter_than_the_model_shortens_it_only_when_no_length_was_asked(caplog) -> None:
    _, length = choose_plan(CONFIG, SIZES, Limits(10**12, kv_bytes=50_000), threads=1)
    assert length == 5 * 32
    assert "lowered from 1024 to 160" in caplog.text
    with pytest.raises(CapacityError, match=r"holds 160 tokens.*may take 200.*kv_cache_memory_bytes to 70000"):
        choose_plan(CONFIG, SIZES, Limits(10**12, max_model_len=200, kv_bytes=50_000), threads=1)
    with pytest.raises(CapacityError, match="holds 0 tokens"):
        choose_plan(CONFIG, SIZES, Limits(10**12, kv_bytes=9_999), threads=1)


def test_contradictions_are_named() -> None:
    with pytest.raises(CapacityError, match=r"can't hold the weights \(0\.00 GB\)"):
        choose_plan(CONFIG, SIZES, Limits(memory_bytes=1_000_001), threads=1)
    with pytest.raises(ConfigError, match="max_model_len 1025 is longer than the model's own limit of 1024"):
        choose_plan(CONFIG, SIZES, Limits(10**12, max_model_len=1025), threads=1)
    with pytest.raises(ConfigError, match=r"step of 4 tokens \(max_num_batched_tokens\)"):
        choose_plan(CONFIG, SIZES, Limits(10**12, max_requests=8, step_tokens=4), threads=1)
