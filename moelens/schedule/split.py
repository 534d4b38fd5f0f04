"""Cuts a step into parts, by the seconds that rows take on each lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from moelens.cost.routing import RoutingLoad
from moelens.cost.workload import RowSeconds, StepShape
from moelens.pipeline.task import Stage
from moelens.plan import Plan
from moelens.schedule.batch import Chunk, shape_of


class Pricing(Protocol):
    """What rows and parts take on this machine; see `moelens.planning.pricing`."""

    def row_seconds(self, shape: StepShape) -> RowSeconds:
        """A step of `shape` shared out among its rows."""

    def best_parts(self, shape: StepShape, most: int) -> int:
        """Into how many parts, `most` at the most, a step of `shape` is best cut."""

    def free_prompt_rows(self, decodes: StepShape, most: int) -> int:
        """How many rows of prompts, `most` at the most, a step of `decodes` has time for while its weights come."""

    def observe(self, parts: Sequence[StepShape], stage_seconds: Mapping[Stage, float], routing: RoutingLoad) -> None:
        """Take in what the stages of a step of these parts took, and how rows were shared out among experts so far."""


class NoPrices:
    """Nothing is known of the machine: all of a step's rows are taken to cost the device as much as all their pairs
    with cached keys cost the host."""

    def row_seconds(self, shape: StepShape) -> RowSeconds:
        key = 1.0 / max(1, shape.decode_context + shape.resumed_pairs)
        return RowSeconds(1.0 / max(1, shape.tokens), 0.0, 0.0, key, key, 0.0, 0.0)

    def best_parts(self, shape: StepShape, most: int) -> int:
        return most

    def free_prompt_rows(self, decodes: StepShape, most: int) -> int:
        return most

    def observe(self, parts: Sequence[StepShape], stage_seconds: Mapping[Stage, float], routing: RoutingLoad) -> None:
        return None


def split_step(chunks: Sequence[Chunk], plan: Plan, pricing: Pricing) -> list[list[Chunk]]:
    """The chunks of a step as at most `plan.parts` non-empty groups."""
    most = min(plan.parts, len(chunks))
    if most > 1:
        shape = shape_of(chunks)
        parts = pricing.best_parts(shape, most) if plan.choose_parts else most
        if parts > 1:
            return split_chunks(chunks, parts, pricing.row_seconds(shape))
    return [list(chunks)]


def split_chunks(chunks: Sequence[Chunk], parts: int, seconds: RowSeconds) -> list[list[Chunk]]:
    """At most `parts` non-empty groups that take about equally long, in all and on the lane that is busiest for them.

    In every layer a part's rows go round from device to host and back while the other parts do: the slowest part's
    round bounds the step, and equal shares of each lane leave none without work in between. A request's chunk stays
    whole. Chunks go, the longest first, to the group where they add least; order is kept inside.
    """
    needs = [seconds.of(chunk.count, chunk.running.cached) for chunk in chunks]
    rounds = [sum(need) for need in needs]
    groups: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0.0, 0.0, 0.0, 0.0)] * parts
    for index in sorted(range(len(chunks)), key=lambda i: (-rounds[i], i)):
        device, host, up, down = needs[index]
        least, least_key, least_load = 0, (float("inf"), 0), loads[0]
        for part, load in enumerate(loads):
            grown = load[0] + device, load[1] + host, load[2] + up, load[3] + down
            key = sum(grown) + max(grown), len(groups[part])
            if key < least_key:
                least, least_key, least_load = part, key, grown
        groups[least].append(index)
        loads[least] = least_load
    return [[chunks[i] for i in sorted(group)] for group in groups if group]
