"""Which tensors are quantised, and what a model makes of them: nearly the same numbers, and every row its own."""

from __future__ import annotations

from array import array

import torch
from tiny_config import CONFIG

from moelens.checkpoint.random import random_weights
from moelens.engine import Engine
from moelens.machine.cpu import CpuMachine
from moelens.models.architecture import Architecture
from moelens.models.config import Quantization
from moelens.models.registry import build
from moelens.offload import slab_bytes
from moelens.ops.interface import Ops
from moelens.ops.native import NativeOps
from moelens.ops.reference import ReferenceOps
from moelens.plan import Plan
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.stopping import Stopping


def quantized() -> Architecture:
    return build(CONFIG, quantization=Quantization.INT8)


def logprobs(architecture: Architecture, ops: Ops) -> torch.Tensor:
    """Of each token of a prompt, [T - 1]."""
    weights = random_weights(architecture, ops, seed=0, threads=1)
    plan = Plan(step_tokens=64, max_requests=1, kv_blocks=4, threads=1)
    engine = Engine(architecture, weights, ops, CpuMachine(), plan, Stopping(None, (), 128))
    engine.add(Request(0, array("i", range(60)), SamplingParams(max_tokens=1, prompt_logprobs=0), seed=0))
    (request,) = [request for report in engine.run() for request in report.finished]
    assert request.prompt_logprobs is not None
    return torch.tensor([entry.logprob for step in request.prompt_logprobs[1:] for entry in (step or {}).values()])


def test_large_products_are_quantised_and_nothing_else() -> None:
    plain, changed = build(CONFIG), quantized()
    assert changed.config.quantization is Quantization.INT8
    assert changed.resident_tensors == plain.resident_tensors
    for specs in changed.layer_tensors:
        names = {spec.name for spec in specs if spec.dtype == torch.int8}
        assert names == {"qkv", "output", "experts.gate_up", "experts.down"}
        assert all(spec.dtype is None for spec in specs if spec.name not in names)


def test_a_store_is_as_large_as_was_said() -> None:
    for architecture in (build(CONFIG), quantized()):
        ops = NativeOps(1)
        assert random_weights(architecture, ops, seed=0, threads=1).nbytes == store_bytes(architecture, ops)
    assert store_bytes(quantized(), ops) < 0.6 * store_bytes(build(CONFIG), ops)


def test_quantised_weights_come_from_those_as_they_are() -> None:
    """Each within half a step of its row's scale: what is packed is what would have been there."""
    ops = ReferenceOps()
    stores = [random_weights(architecture, ops, seed=0, threads=1) for architecture in (build(CONFIG), quantized())]
    plain, whole = (store.layer(1).experts["experts"].down for store in stores)
    scales = whole[..., -4:].clone().view(torch.float32)
    assert ((whole[..., :-4].float() * scales - plain).abs() <= 0.5001 * scales).all()


def test_logprobs_are_near_those_of_the_model_as_it_is() -> None:
    expected, found = logprobs(build(CONFIG), NativeOps(1)), logprobs(quantized(), NativeOps(1))
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()
    assert torch.allclose(found, logprobs(quantized(), ReferenceOps()), atol=1e-3)


def store_bytes(architecture, ops):
    layers, resident = slab_bytes(architecture, ops)
    return resident + sum(layer.front + layer.block for layer in layers)
