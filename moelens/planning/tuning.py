"""Fits the limits of steps to the requests that are known, around a cache and memory that are laid out already."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from moelens.cost.footprint import activation_bytes
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.plan import Plan
from moelens.planning.predict import predict, rough_seconds
from moelens.planning.search import WORTH, fastest, step_sizes
from moelens.planning.simulate import Prediction

UNMEASURED_WORTH = 1.1  # what another plan must gain on a machine that is only guessed at
LEAST_SECONDS = 2.0  # of a job that is worth choosing for
SIMULATED_ROWS = 10_000  # of a job that is simulated rather than reckoned in closed form
LONG_SECONDS = 30.0  # of a job that is worth some tenths of a second of simulating


@dataclass(frozen=True)
class Room:
    """Within what limits may change after loading.

    `fixed` are the names of those that the user gave. The host has `memory_bytes` for cache and activations, where a
    block takes `block_bytes`. On a device, steps may not have more rows than it was laid out for.
    """

    fixed: frozenset[str]
    memory_bytes: int
    block_bytes: int
    has_device: bool


@dataclass(frozen=True)
class Tuning:
    """The chosen plan, and why."""

    plan: Plan
    reasons: tuple[str, ...]


def tune(
    cost: CostModel,
    base: Plan,
    room: Room,
    workload: Workload,
    *,
    measured: bool,
    touched_blocks: int,
    least_seconds: float = LEAST_SECONDS,
) -> Tuning:
    """`base`, or the plan with other limits of steps that is expected to end `workload` clearly sooner.

    `touched_blocks` of the cache have their memory already. On a machine that was not `measured` another plan has to
    gain 10 %, else 2 %. Nothing is chosen for a job of less than `least_seconds`.
    """
    others = list(_others(cost, base, room, workload, touched_blocks))
    if not others:
        return Tuning(base, (f"other limits that are free change nothing for {workload.requests} requests",))
    usual = rough_seconds(cost, base, workload)
    if usual < least_seconds:
        return Tuning(base, ("the default, as there is little to do",))
    rows = SIMULATED_ROWS if measured and usual >= LONG_SECONDS else 0  # guesses are not worth it

    def rough(plan: Plan) -> float:
        return rough_seconds(cost, plan, workload)

    @functools.cache
    def predicted(plan: Plan) -> Prediction:
        return predict(cost, plan, workload, most_rows=rows)

    best, gain = fastest(base, others, rough, predicted, WORTH if measured else UNMEASURED_WORTH)
    machine = cost.hardware.name if measured else "a machine that was not measured"
    if best is base:
        return Tuning(base, (f"the default, which none of {len(others)} others clearly beats on {machine}",))
    limits = f"steps of {best.step_tokens} rows and {best.max_requests} requests at most"
    return Tuning(best, (f"{limits}: expected to be {gain:.2f} times as fast as the default on {machine}",))


def _others(cost: CostModel, base: Plan, room: Room, workload: Workload, touched: int) -> Iterator[Plan]:
    """Plans that differ from the base one for these requests."""
    rows = workload.requests + sum(workload.prompt_tokens)  # more than this in a step change nothing
    seen = {effect(base, workload.requests, rows)}
    max_requests = base.max_requests if "max_requests" in room.fixed else None
    most_rows = base.step_tokens if "step_tokens" in room.fixed else None
    for requests, step_tokens in step_sizes(cost, max_requests, most_rows):
        if room.has_device and step_tokens > base.step_tokens:
            continue
        plan = dataclasses.replace(base, max_requests=requests, step_tokens=step_tokens)
        reached = effect(plan, workload.requests, rows)
        if reached not in seen and _has_room(cost, plan, room, workload, touched):
            seen.add(reached)
            yield plan


def effect(plan: Plan, requests: int, rows: int) -> tuple[int, int]:
    """The limits of steps as far as a job of so many requests and rows reaches them: equal ones are one plan."""
    return min(plan.max_requests, requests), min(plan.step_tokens, rows)


def _has_room(cost: CostModel, plan: Plan, room: Room, workload: Workload, touched: int) -> bool:
    """Whether the activations of its steps find memory beside the blocks that its requests may take."""
    running = min(plan.max_requests, workload.requests) * -(-workload.longest_tokens // plan.block_tokens)
    blocks = min(plan.kv_blocks, max(touched, running + plan.retained_blocks))
    return blocks * room.block_bytes + activation_bytes(cost.config, plan.step_tokens) <= room.memory_bytes
