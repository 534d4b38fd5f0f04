"""A request's tokens and log-probabilities are the same bits whatever the batch, cache, parts and threads."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.checkpoint.random import random_weights
from moelens.engine import Engine
from moelens.machine.cpu import CpuMachine
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Architecture
from moelens.models.config import Quantization
from moelens.models.registry import build
from moelens.ops.native import NativeOps
from moelens.plan import Plan
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.stopping import Stopping

WINDOW = 40
RAW = {
    "mixtral": {
        "model_type": "mixtral",
        "vocab_size": 199,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "sliding_window": WINDOW,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "vocab_size": 200,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "mlp_only_layers": [1],
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
    },
}
NAMES = [*RAW, "qwen2_moe in int8"]
ROOMY = Plan(step_tokens=1024, max_requests=16, kv_blocks=256, threads=1)
# (prompt tokens, output tokens, temperature)
REQUESTS = [(1, 20, 0.0), (33, 9, 0.0), (70, 40, 0.9), (128, 3, 0.7), (31, 34, 0.0), (95, 12, 1.3), (64, 2, 0.0)]
ALIKE = (2, 3, 5, 6)  # these begin with the same tokens, so blocks are shared
ALIKE_TOKENS = 50

Outcome = tuple[list[int], list[float]]


@cache
def model(name: str, threads: int) -> tuple[Architecture, WeightStore, NativeOps]:
    family, _, quantization = name.partition(" in ")
    architecture = build(RAW[family], quantization=Quantization(quantization) if quantization else None)
    ops = NativeOps(threads=threads)
    return architecture, random_weights(architecture, ops, seed=3, threads=1), ops


def make_request(index: int) -> Request:
    prompt, output, temperature = REQUESTS[index]
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(0, 199, (prompt,), generator=generator).tolist()
    if index in ALIKE:
        ids[:ALIKE_TOKENS] = range(ALIKE_TOKENS)
    params = SamplingParams(
        temperature=temperature,
        max_tokens=output,
        logprobs=2,
        ignore_eos=index % 4 == 3,  # of the others nobody knows when they end, so that some are preempted
        prompt_logprobs=None if index in ALIKE else 0,  # those who ask for them compute all of their prompt
    )
    return Request(index, array("i", ids), params, seed=1000 + index)


def run_requests(engine: Engine, indices: Sequence[int]) -> dict[int, Outcome]:
    """Tokens and log-probabilities by request."""
    for index in indices:
        engine.add(make_request(index))
    outcomes: dict[int, Outcome] = {}
    for report in engine.run():
        for request in report.finished:
            assert request.finish_reason == "length"
            scores = [entry.logprob for step in request.logprobs for entry in step.values()]
            scores += [entry.logprob for step in (request.prompt_logprobs or [None])[1:] for entry in step.values()]
            outcomes[request.request_id] = (list(request.output_token_ids), scores)
    return outcomes


def generate(name: str, indices: Sequence[int], plan: Plan) -> dict[int, Outcome]:
    architecture, weights, ops = model(name, plan.threads)
    return run_requests(Engine(architecture, weights, ops, CpuMachine(), plan, Stopping(None, (), 512)), indices)


@cache
def alone(name: str, index: int) -> Outcome:
    """What a request gives with nobody beside it."""
    return generate(name, [index], ROOMY)[index]


plans = st.builds(
    lambda step_tokens, max_requests, kv_blocks, parts, threads, retained: replace(
        ROOMY,
        step_tokens=max(step_tokens, max_requests),
        max_requests=max_requests,
        kv_blocks=kv_blocks,
        parts=parts,
        threads=threads,
        retained_blocks=retained,
    ),
    st.integers(1, 200),
    st.integers(1, 8),
    st.integers(5, 24),  # 5 blocks hold the longest request; all seven together need 21
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 6),
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(st.permutations(range(len(REQUESTS))), st.integers(1, len(REQUESTS)), plans)
def test_no_schedule_changes_a_bit(name: str, order: list[int], count: int, plan: Plan) -> None:
    chosen = order[:count]
    outcomes = generate(name, chosen, plan)
    for index in chosen:
        assert outcomes[index] == alone(name, index), f"request {index} under {plan}"


def test_the_schedules_above_do_share_prefixes() -> None:
    architecture, weights, ops = model("mixtral", 1)
    engine = Engine(architecture, weights, ops, CpuMachine(), ROOMY, Stopping(None, (), 512))
    for index in ALIKE:
        engine.add(make_request(index))
    for _ in engine.run():
        pass
    assert engine.scheduler.shared_tokens == 32 * (len(ALIKE) - 1)


def test_the_schedules_above_do_preempt() -> None:
    architecture, weights, ops = model("mixtral", 1)
    plan = replace(ROOMY, kv_blocks=5)
    engine = Engine(architecture, weights, ops, CpuMachine(), plan, Stopping(None, (), 512))
    for index in (1, 2, 4):
        engine.add(make_request(index))
    for _ in engine.run():
        pass
    assert engine.scheduler.preemptions > 0
