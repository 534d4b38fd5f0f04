"""A run counts which experts its rows go to, and how many a step is expected to touch goes by it."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_batch_independence import RAW, ROOMY

from moelens.checkpoint.load import load_weights
from moelens.cost.routing import EVEN
from moelens.cost.work import layer_weight_bytes
from moelens.devices import CpuDevice, Device, EmulatedDevice
from moelens.engine import Engine
from moelens.models.config import MoEFFN
from moelens.models.registry import build
from moelens.offload import open_device, place_plan, price_steps
from moelens.ops.native import NativeOps
from moelens.planning.pricing import StepPricing
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.stopping import Stopping

FFN = MoEFFN(experts=32, active=2, width=48)
ARCHITECTURE = build({**RAW["mixtral"], "num_local_experts": FFN.experts})
BUSY = 4  # of a layer's experts
UNEVEN = 6.0
REQUESTS = 64
PLAN = replace(ROOMY, step_tokens=2048, max_requests=REQUESTS, experts_on_host=True)
CPU = CpuDevice()
LINK = 1e8  # bytes per second
LAYER_BYTES = layer_weight_bytes(ARCHITECTURE.config, 0)


class WatchedOps(NativeOps):
    """Keeps the experts that rows go to where these are computed."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.ids: list[torch.Tensor] = []  # of calls for REQUESTS rows

    def experts(self, x: torch.Tensor, weights: Any, ids: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        if len(ids) == REQUESTS:
            self.ids.append(ids)
        return super().experts(x, weights, ids, *others, **options)


def write_checkpoint(folder: Path, factor: float) -> None:
    """Random weights; the router's logits of busy experts, others in each layer, are `factor` times as far from zero as
    those of the others, so that these experts are chosen whenever their logits are positive."""
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    for specs in (ARCHITECTURE.resident_tensors, *ARCHITECTURE.layer_tensors):
        for piece in (piece for spec in specs for piece in spec.pieces):
            drawn = 0.2 * torch.randn(piece.shape, generator=generator)
            if piece.name.endswith("gate.weight"):
                drawn[torch.randperm(FFN.experts, generator=generator)[:BUSY]] *= factor
            tensors[piece.name] = (1 + drawn if len(piece.shape) == 1 else drawn).to(ARCHITECTURE.config.dtype)
    save_file(tensors, folder / "model.safetensors")


def make_engine(folder: Path, ops: NativeOps, device: Device = CPU) -> tuple[Engine, StepPricing | None]:
    weights, config = load_weights(folder, ARCHITECTURE, ops, threads=1), ARCHITECTURE.config
    placement = place_plan(device, PLAN, ARCHITECTURE, ops)
    pricing = price_steps(device, config, PLAN, placement)
    side = open_device(device, ARCHITECTURE, weights, ops, PLAN, placement, pricing)
    engine = Engine(ARCHITECTURE, weights, ops, side.machine, PLAN, Stopping(None, (), 512), side.memory, pricing)
    return engine, pricing


def run(engine: Engine, tokens: dict[int, list[int]]) -> Iterator[None]:
    """A step of prompts, and nineteen of decodes."""
    for index in range(REQUESTS):
        prompt = torch.randint(199, (24,), generator=torch.Generator().manual_seed(index))
        params = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True)
        engine.add(Request(index, array("i", prompt.tolist()), params, seed=index))
    for report in engine.run():
        tokens.update({request.request_id: list(request.output_token_ids) for request in report.finished})
        yield


@pytest.mark.parametrize("factor", [1.0, UNEVEN])
def test_where_prompts_went_tells_how_many_experts_decodes_touch(tmp_path: Path, factor: float) -> None:
    write_checkpoint(tmp_path, factor)
    ops = WatchedOps()
    engine, _ = make_engine(tmp_path, ops)
    assert engine.routing is EVEN
    steps = run(engine, {})
    next(steps)
    expected, ops.ids = engine.routing.touched(FFN, REQUESTS), []
    assert len(list(steps)) == 19
    touched, even = statistics.fmean(len(ids.unique()) for ids in ops.ids), EVEN.touched(FFN, REQUESTS)
    assert expected == pytest.approx(touched, rel=0.05)
    assert engine.routing.touched(FFN, REQUESTS) == pytest.approx(touched, rel=0.03)
    if factor == UNEVEN:
        assert touched < 0.8 * even and engine.routing.imbalance > 5
    else:
        assert expected == pytest.approx(even, rel=0.1)


def test_prices_of_steps_go_by_it_and_tokens_do_not(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, UNEVEN)
    ops, tokens, on_device = NativeOps(threads=1), dict[int, list[int]](), dict[int, list[int]]()
    engine, _ = make_engine(tmp_path, ops)
    list(run(engine, tokens))
    placement = place_plan(EmulatedDevice(1 << 40, LINK), PLAN, ARCHITECTURE, ops)
    assert placement is not None
    engine, pricing = make_engine(tmp_path, ops, EmulatedDevice(placement.device_bytes - LAYER_BYTES, LINK))
    assert pricing is not None and pricing.cost.routing is EVEN
    steps = run(engine, on_device)
    next(steps)
    assert engine.routing is not EVEN and pricing.cost.routing is engine.routing
    list(steps)
    assert on_device == tokens
