"""Limits of steps are chosen for the requests that are known, within what was fixed and what memory is left."""

from __future__ import annotations

import dataclasses

import pytest
from test_search import CONFIG, CPU_ONLY

from moelens.cost.footprint import activation_bytes
from moelens.cost.workload import Workload
from moelens.plan import Plan
from moelens.planning.predict import predict, rough_seconds
from moelens.planning.simulate import Prediction, simulate
from moelens.planning.tuning import LONG_SECONDS, SIMULATED_ROWS, Room, Tuning, tune

BASE = Plan(step_tokens=2048, max_requests=256, kv_blocks=40_000)
BLOCK_BYTES = CONFIG.kv_bytes_per_token * BASE.block_tokens
ROOM = Room(frozenset(), memory_bytes=10**11, block_bytes=BLOCK_BYTES, has_device=False)
MANY = Workload.even(4000, 100, 60)  # decodes of few rows an expert, on a machine that reads slowly


def choose(workload: Workload = MANY, room: Room = ROOM, measured: bool = True, touched: int = 0) -> Tuning:
    return tune(CPU_ONLY, BASE, room, workload, measured=measured, touched_blocks=touched)


def test_many_requests_run_at_once_where_that_gains() -> None:
    tuning = choose()
    assert tuning.plan.max_requests > 256
    assert tuning.plan.kv_blocks == BASE.kv_blocks
    assert predict(CPU_ONLY, tuning.plan, MANY).seconds < predict(CPU_ONLY, BASE, MANY).seconds / 1.02
    assert "times as fast as the default" in tuning.reasons[0]


@pytest.mark.parametrize("workload", [Workload.even(100, 10, 60), Workload.even(300, 3, 2)])
def test_nothing_is_weighed_where_little_is_to_be_done(workload: Workload) -> None:
    assert choose(workload).plan is BASE


def test_what_is_fixed_is_kept() -> None:
    room = dataclasses.replace(ROOM, fixed=frozenset(("max_requests",)))
    assert choose(room=room).plan.max_requests == 256
    room = dataclasses.replace(ROOM, fixed=frozenset(("max_requests", "step_tokens")))
    assert choose(room=room).plan is BASE
    room = dataclasses.replace(ROOM, fixed=frozenset(("step_tokens",)))
    assert choose(room=room).plan.step_tokens == 2048


def test_activations_have_to_find_memory_beside_the_cache() -> None:
    running = 1024 * -(-160 // 32) * BLOCK_BYTES
    least = running + activation_bytes(CONFIG, 2048)
    room = dataclasses.replace(ROOM, memory_bytes=least)
    tuning = choose(room=room)
    assert tuning.plan.max_requests <= 1024 and tuning.plan.step_tokens == 2048
    assert choose(room=dataclasses.replace(ROOM, memory_bytes=10**6)).plan is BASE
    assert choose(room=room, touched=40_000).plan is BASE  # that memory is gone


def test_a_machine_that_is_guessed_at_needs_more_to_gain() -> None:
    sure, unsure = choose(), choose(measured=False)
    gain = predict(CPU_ONLY, BASE, MANY).seconds / predict(CPU_ONLY, sure.plan, MANY).seconds
    assert (unsure.plan is BASE) == (gain < 1.1)


@pytest.mark.parametrize("measured", [True, False])
def test_only_a_measured_machine_is_simulated(measured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = []

    def watch(*args: object, **kwargs: object) -> Prediction:
        simulated.append(args)
        return simulate(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("moelens.planning.predict.simulate", watch)
    workload = Workload.even(300, 4000, 20)
    assert rough_seconds(CPU_ONLY, BASE, workload) > LONG_SECONDS and SIMULATED_ROWS >= 300 * 21
    choose(workload, measured=measured)
    assert bool(simulated) == measured


def test_a_device_keeps_the_rows_that_it_was_laid_out_for() -> None:
    room = dataclasses.replace(ROOM, has_device=True)
    assert choose(room=room).plan.step_tokens <= BASE.step_tokens
