"""The probe measures a machine that its own cost model then describes; no figure is held to anything but sense."""

from __future__ import annotations

import json

import pytest

from moelens.cost.hardware import from_json, to_json
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape
from moelens.devices import EmulatedDevice
from moelens.models.architecture import Architecture
from moelens.models.registry import build
from moelens.ops.native import NativeOps
from moelens.pipeline.task import Stage
from moelens.planning import probe
from moelens.planning.curves import ROW_WISE
from moelens.planning.probe import ProbeBench, layers_for_cold, truncate
from moelens.planning.reading import read_bytes_per_second

RAW: dict[str, object] = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "vocab_size": 256,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    return build(RAW)


def test_what_is_measured_describes_every_stage(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "DECODE_ROWS", (1, 8))
    monkeypatch.setattr(probe, "PREFILL_ROWS", (16, 512, 2048))
    monkeypatch.setattr(probe, "CONTEXTS", (16, 256))
    monkeypatch.setattr(probe, "PROMPTS", (64, 2048))
    bench = ProbeBench(architecture, NativeOps(1))
    spec = bench.spec([*bench.round(), *bench.round()])
    assert from_json(json.loads(json.dumps(to_json(spec))), "here") == spec
    cost = CostModel(architecture.config, spec)
    shape = StepShape(5, 500, 600, 9000, 10, 100, 3000)
    for stage in (*ROW_WISE, Stage.STORE_KV, Stage.ATTEND_DECODES, Stage.ATTEND_PREFILLS, Stage.SAMPLE):
        assert stage is Stage.STORE_KV or stage.value in spec.host.stages
        assert 0 < cost.demand(stage, 0, shape).seconds < 10
    assert spec.bytes_per_second_by_threads[0] > 0
    assert spec.step_seconds >= 0


def test_experts_are_counted_that_rows_went_to(architecture: Architecture) -> None:
    bench = ProbeBench(architecture, NativeOps(1))
    one, many = bench.run(1, 16, 1), bench.run(64, 16, 1)
    assert one.experts_touched == 2  # of the one row's own choice
    assert 2 < many.experts_touched <= 4
    assert one.read_seconds_per_byte > 0


def test_host_device_and_link_are_measured_apart(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "DECODE_ROWS", (1, 8))
    monkeypatch.setattr(probe, "PREFILL_ROWS", (16, 512, 2048))
    monkeypatch.setattr(probe, "CONTEXTS", (16, 256))
    monkeypatch.setattr(probe, "PROMPTS", (64, 2048))
    bench = ProbeBench(architecture, NativeOps(1), EmulatedDevice(1, 2e8))
    spec = bench.spec(bench.round())
    assert spec.device is not None and spec.device_shares_memory
    for rate in (spec.to_device_bytes_per_second, spec.to_host_bytes_per_second):
        assert rate < 2.5e8  # as the link is no faster
    assert 0 < spec.both_ways_share <= 1 and 0 < spec.link_cores <= 1
    assert spec.device.cores == spec.host.cores == 1 <= spec.cores
    assert from_json(json.loads(json.dumps(to_json(spec))), "here") == spec
    cost = CostModel(architecture.config, spec)
    shape = StepShape(5, 500, 600, 9000, 10, 100, 3000)
    for stage in Stage:
        assert 0 <= cost.demand(stage, 0, shape).seconds < 10


def test_enough_layers_for_no_cache_to_hold_them(architecture: Architecture) -> None:
    assert layers_for_cold(architecture) == 3  # all there are
    assert len(truncate(architecture, 2).config.layers) == len(truncate(architecture, 2).layer_tensors) == 2


def test_reading_is_timed_by_any_number_of_threads() -> None:
    assert all(read_bytes_per_second(threads, nbytes=1 << 20, rounds=2) > 0 for threads in (1, 3))
