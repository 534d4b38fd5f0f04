"""Where experts are read from the checkpoint's files in each step, tokens and log-probabilities are the same bits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_batch_independence import RAW, REQUESTS, ROOMY, Outcome, make_request, run_requests
from test_emulated_device import LINK, memory_for

from moelens.checkpoint.load import load_weights
from moelens.devices import CpuDevice, Device, EmulatedDevice
from moelens.engine import Engine
from moelens.errors import CheckpointError
from moelens.models.registry import build
from moelens.offload import open_device, place_plan
from moelens.ops.native import NativeOps
from moelens.pipeline.task import Resource, Stage
from moelens.plan import Plan
from moelens.stopping import Stopping

OPS = NativeOps(1)
LAYERS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of random weights for each model."""
    made = {name: tmp_path_factory.mktemp(name) for name in RAW}
    for name, folder in made.items():
        write_checkpoint(name, folder)
    return made


def write_checkpoint(name: str, folder: Path) -> None:
    architecture, generator = build(RAW[name]), torch.Generator().manual_seed(5)
    tensors: dict[str, torch.Tensor] = {}
    for specs in (architecture.resident_tensors, *architecture.layer_tensors):
        for piece in (piece for spec in specs for piece in spec.pieces):
            drawn = 0.2 * torch.randn(piece.shape, generator=generator)
            tensors[piece.name] = (1 + drawn if len(piece.shape) == 1 else drawn).to(architecture.config.dtype)
    save_file(tensors, folder / "model.safetensors")


def make_engine(name: str, folder: Path, plan: Plan, device: Device | None = None) -> Engine:
    architecture = build(RAW[name])
    weights = load_weights(
        *(folder, architecture, OPS),
        threads=1,
        disk_layers=plan.disk_layers,
        disk_ring_layers=plan.disk_ring_layers,
    )
    device = device or CpuDevice()
    placement = place_plan(device, plan, architecture, OPS)
    side = open_device(device, architecture, weights, OPS, plan, placement)
    return Engine(architecture, weights, OPS, side.machine, plan, Stopping(None, (), 512), side.memory)


@cache
def in_memory(name: str, folder: Path) -> dict[int, Outcome]:
    return run_requests(make_engine(name, folder, ROOMY), list(range(len(REQUESTS))))


disk_layers = st.sets(st.integers(0, LAYERS - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
disk_plans = st.builds(
    lambda step_tokens, parts, chunks, layers, slots: replace(
        *(ROOMY,),
        step_tokens=max(step_tokens, ROOMY.max_requests),
        parts=parts,
        load_chunks=chunks,
        disk_layers=layers,
        disk_ring_layers=slots,
    ),
    st.integers(1, 300),
    st.integers(1, 3),
    st.integers(1, 3),
    disk_layers,
    st.integers(2, 3),
)


@pytest.mark.parametrize("holds", [None, "ring", "fronts", "all"])
@pytest.mark.parametrize("name", RAW)
@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(len(REQUESTS))), count=st.integers(1, len(REQUESTS)), plan=disk_plans)
def test_it_does_not_matter_which_layers_are_on_disk(
    folders: dict[str, Path], name: str, holds: str | None, order: list[int], count: int, plan: Plan
) -> None:
    device = None if holds is None else EmulatedDevice(memory_for(name, plan, holds), LINK)
    engine = make_engine(name, folders[name], plan, device)
    outcomes = run_requests(engine, order[:count])
    expected = in_memory(name, folders[name])
    assert outcomes == {index: expected[index] for index in order[:count]}


def test_a_pass_reads_each_layer_once_and_one_request_only_its_experts(folders: dict[str, Path]) -> None:
    plan = replace(ROOMY, disk_layers=(0, 1, 2), share_prefixes=False)
    engine = make_engine("mixtral", folders["mixtral"], plan)
    expert = 3 * 48 * 64 * 2  # bytes of one, of which a row goes to 2 of 5
    for index in (1, 3):
        engine.add(make_request(index))
    reads: list[list[int]] = []
    for _ in engine.run():
        spans = engine.last_timeline.spans
        reads.append([span.moved_bytes for span in spans if span.task.stage is Stage.READ and span.moved_bytes])
        assert engine.last_timeline.moved_bytes(Resource.DISK) <= 15 * expert
    assert reads[0] == [5 * expert] * 3
    engine.add(make_request(0))
    alone = [engine.last_timeline.moved_bytes(Resource.DISK) for _ in engine.run()]
    assert max(alone[1:]) <= 3 * 2 * expert


def break_by(engine: Engine, harm: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if harm == "truncated":
        os.truncate(path, 1 << 12)
    elif harm == "written to":
        os.utime(path, ns=(1, 1))
    elif harm == "removed":
        path.unlink()
    elif harm == "replaced":
        other = path.with_name("other")
        other.write_bytes(b"something else")
        other.replace(path)
    else:

        def fail(file: int, buffers: Sequence[object], offset: int) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", fail)


@pytest.mark.parametrize("device", [None, EmulatedDevice(1 << 30, LINK)])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("truncated", r"model\.safetensors: tensor '.*': expected data up to byte \d+, found the file's end"),
        ("written to", r"model\.safetensors was written to while its experts were read from it: leave"),
        ("fails", r"model\.safetensors: tensor '.*': .*read error at byte \d+ \(Input/output error\): check the disk"),
    ],
)
def test_what_goes_wrong_with_a_file_is_told(
    harm: str, message: str, device: Device | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint("mixtral", tmp_path)
    plan = replace(ROOMY, disk_layers=(0, 1, 2))
    if device is not None:
        device = EmulatedDevice(memory_for("mixtral", plan, "fronts"), LINK)
    engine = make_engine("mixtral", tmp_path, plan, device)
    for index in range(3):
        engine.add(make_request(index))
    steps = engine.run()
    next(steps)
    break_by(engine, harm, tmp_path / "model.safetensors", monkeypatch)
    with pytest.raises(CheckpointError, match=message):
        list(steps)


@pytest.mark.parametrize("harm", ["removed", "replaced"])
def test_a_file_that_is_removed_or_replaced_is_read_as_it_was(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint("mixtral", tmp_path)
    engine = make_engine("mixtral", tmp_path, replace(ROOMY, disk_layers=(0, 1, 2)))
    break_by(engine, harm, tmp_path / "model.safetensors", monkeypatch)
    clean = tmp_path / "again"
    clean.mkdir()
    write_checkpoint("mixtral", clean)
    assert run_requests(engine, [0, 1]) == {index: in_memory("mixtral", clean)[index] for index in (0, 1)}
