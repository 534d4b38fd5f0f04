"""Chooses a plan: enumerate, predict, simulate the best few, and say why."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from moelens.cost.footprint import activation_bytes
from moelens.cost.hardware import HardwareSpec
from moelens.cost.seconds import CostModel
from moelens.cost.work import stage_work
from moelens.cost.workload import StepShape, Workload
from moelens.errors import CapacityError
from moelens.models.config import ModelConfig
from moelens.pipeline.task import Stage
from moelens.plan import Placement, Plan
from moelens.planning.default import Limits, Sizes, choose_plan
from moelens.planning.device import DeviceSizes, fit, for_device
from moelens.planning.disk import layer_bytes, read_bytes
from moelens.planning.placement import spread
from moelens.planning.predict import SIMULATED_ROWS, predict, rough_seconds
from moelens.planning.simulate import Prediction

REQUESTS = (256, 512, 1024, 2048, 4096)
STEP_TOKENS = (1024, 2048, 4096, 8192)
OF_SATURATION = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # steps tried on a device, in units of n_real
MOST_STEP_TOKENS = 1 << 17  # of those: all links are hidden then, and activations take tens of gigabytes
OF_DISK = (0.5, 0.7, 0.85, 1.2, 1.5, 2.0)  # layers on disk that are tried, in units of those that the default has there
PARTS = (1, 2, 3)  # of every step, where the default is as many, up to 3, as a step is expected to be fastest with
FINALISTS = 3  # that are predicted on clocks, by simulation where the job is small
WORTH = 1.02  # what another plan must gain to be taken in place of the default

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """A plan with what lies on the device, the longest sequence (tokens), what it is expected to do, and why."""

    plan: Plan
    placement: Placement | None
    max_model_len: int
    cost: CostModel
    prediction: Prediction
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A plan, and the limits that it was made from."""

    limits: Limits
    plan: Plan
    placement: Placement | None
    max_model_len: int
    cost: CostModel


def choose(
    cost: CostModel,
    sizes: Sizes,
    limits: Limits,
    threads: int,
    workload: Workload,
    *,
    device: DeviceSizes | None = None,
    simulated_rows: int = SIMULATED_ROWS,
    worth: float = WORTH,
) -> Choice:
    """The plan that is expected to finish `workload` first, with everything kept that `limits` fix.

    One knob is tried after the other, around the best plan so far, which stays unless another gains `worth`; it begins
    as the default. `device` is what a device would hold (None: by the config and the hardware alone). Raises what
    `choose_plan` raises, and CapacityError when no plan can hold the workload.
    """
    if device is None and cost.hardware.device is not None:
        device = device_sizes(cost.config, int(cost.hardware.device.memory_bytes))

    def make(tried: Limits) -> _Candidate:
        plan, length = choose_plan(cost.config, sizes, tried, threads)
        own = dataclasses.replace(cost, disk_layers=plan.disk_layers)
        if device is None:
            return _Candidate(tried, plan, None, length, own)
        fitting, placement = fit(for_device(plan, device, tried.streaming), cost.config, device, limits)
        if fitting.step_tokens < plan.step_tokens:  # smaller activations leave more for the cache
            rows, requests = fitting.step_tokens, fitting.max_requests
            return make(dataclasses.replace(tried, step_tokens=rows, max_requests=requests))
        own = dataclasses.replace(own, load_chunks=fitting.load_chunks, placement=placement)
        return _Candidate(tried, fitting, placement, length, own)

    def rough(candidate: _Candidate) -> float:
        return rough_seconds(candidate.cost, candidate.plan, workload)

    @functools.cache
    def predicted(candidate: _Candidate) -> Prediction:
        return predict(candidate.cost, candidate.plan, workload, most_rows=simulated_rows)

    default = best = make(limits)
    seen, gains = {default.plan}, {}
    for knob, tries in _KNOBS.items():
        others = []
        for tried in tries(best, limits, sizes):
            with contextlib.suppress(CapacityError):  # too little memory for its activations, its cache or its ring
                candidate = make(tried)
                if candidate.plan not in seen:
                    seen.add(candidate.plan)
                    others.append(candidate)
        best, gains[knob] = fastest(best, others, rough, predicted, worth)
    prediction = predicted(best)
    if best is default:
        first = f"the default, which none of {len(seen) - 1} others beats by {100 * (worth - 1):.0f} %"
    else:
        parts = ", ".join(f"{gain:.2f} by {knob}" for knob, gain in gains.items() if gain > 1.0)
        first = f"{math.prod(gains.values()):.2f} times the default's speed, the best of {len(seen)} plans: {parts}"
    reasons = (first, *_reasons(best, prediction))
    return Choice(best.plan, best.placement, best.max_model_len, best.cost, prediction, reasons)


def fastest(
    first: T,
    others: Sequence[T],
    rough: Callable[[T], float],
    predicted: Callable[[T], Prediction],
    worth: float,
) -> tuple[T, float]:
    """That of `others` which is expected to take less than `first` by `worth` or more, or else `first`; and its gain.

    The few that are best by their `rough` seconds are predicted. What can't hold the workload is never the fastest.
    """
    few = sorted(others, key=rough)[:FINALISTS]
    best = min(few, key=lambda one: _seconds(predicted, one), default=first)
    gain = _seconds(predicted, first) / _seconds(predicted, best)
    return (best, gain) if gain >= worth else (first, 1.0)


def step_sizes(cost: CostModel, max_requests: int | None, step_tokens: int | None) -> Iterator[tuple[int, int]]:
    """Requests and rows of a step that are worth a try, around those that are given."""
    if cost.hardware.device is None:
        for requests in (max_requests,) if max_requests else REQUESTS:
            for rows in (step_tokens,) if step_tokens else STEP_TOKENS:
                if requests <= rows:
                    yield requests, rows
        return
    saturating = saturating_step_tokens(cost)
    wanted = [min(MOST_STEP_TOKENS, max(32, round(share * saturating))) for share in OF_SATURATION]
    for rows in (step_tokens,) if step_tokens else wanted:
        if (max_requests or 1) <= rows:
            yield max_requests or rows, rows


def saturating_step_tokens(cost: CostModel) -> int:
    """n_real: the tokens at which the device takes for a layer as long as the link for the layer's weights.

    By the paper's procedure: device time over tokens is a line, which is intersected with the transfer time.
    """
    assert cost.hardware.device is not None
    chunks = range(1, cost.load_chunks + 1)
    transfer = sum(cost.demand(Stage.LOAD, 0, StepShape(), chunk).seconds for chunk in (0, *chunks))
    low, high = 1, 1 << 24
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _layer_seconds(cost, middle) < transfer else (low, middle)
    return high


def device_sizes(config: ModelConfig, memory_bytes: int, *, same_bits: bool = False) -> DeviceSizes:
    """What a device would hold of a model, by its config alone."""
    resident = 2 * config.vocab * config.hidden * config.dtype.itemsize
    return DeviceSizes(memory_bytes, layer_bytes(config), resident, _transfers(config), same_bits)


def _transfers(config: ModelConfig) -> Callable[[Plan], int]:
    """Room for q, k, v and attended rows on their way, of two parts."""

    def of(plan: Plan) -> int:
        shape = StepShape(decode_tokens=plan.step_tokens, decode_context=plan.step_tokens)
        stages = (Stage.OFFLOAD, Stage.UPLOAD)
        return round(sum(stage_work(stage, config, 0, shape).bytes for stage in stages))

    return of


def _limits_of_steps(best: _Candidate, limits: Limits, sizes: Sizes) -> Iterator[Limits]:
    for requests, rows in step_sizes(best.cost, limits.max_requests, limits.step_tokens):
        yield dataclasses.replace(best.limits, max_requests=requests, step_tokens=rows)


def _disk_layers(best: _Candidate, limits: Limits, sizes: Sizes) -> Iterator[Limits]:
    """What memory is left by more or fewer layers on disk is the cache's."""
    layers, on_disk = len(sizes.layers), len(best.plan.disk_layers)
    if not on_disk or limits.kv_bytes is not None:
        return
    left = limits.memory_bytes - activation_bytes(best.cost.config, best.plan.step_tokens)
    for count in dict.fromkeys(min(layers, max(1, round(share * on_disk))) for share in OF_DISK):
        kv_bytes = left - sizes.host_bytes(spread(count, layers))
        if kv_bytes >= sizes.block_bytes:
            yield dataclasses.replace(best.limits, kv_bytes=kv_bytes)


def _parts(best: _Candidate, limits: Limits, sizes: Sizes) -> Iterator[Limits]:
    if best.placement is not None and limits.streaming.parts is None:
        for parts in PARTS:
            streaming = dataclasses.replace(best.limits.streaming, parts=parts)
            yield dataclasses.replace(best.limits, streaming=streaming)


_KNOBS = {"limits of steps": _limits_of_steps, "weights on disk": _disk_layers, "the number of parts": _parts}


def _seconds(predicted: Callable[[T], Prediction], one: T) -> float:
    try:
        return predicted(one).seconds
    except CapacityError:
        return math.inf


def _layer_seconds(cost: CostModel, tokens: int) -> float:
    shape = StepShape(prefill_tokens=tokens, prefill_pairs=tokens)
    stages = (Stage.BEFORE_ATTENTION, Stage.AFTER_ATTENTION)
    return sum(cost.demand(stage, 0, shape).seconds for stage in stages)


def _reasons(best: _Candidate, prediction: Prediction) -> Iterator[str]:
    plan = best.plan
    yield f"steps of {plan.step_tokens} rows and {plan.max_requests} requests at most, in {_parts_of(plan)}"
    yield f"the cache holds {plan.kv_tokens} tokens of context"
    hardware: HardwareSpec = best.cost.hardware
    if hardware.device is not None:
        yield f"n_real, from where on the device and not the link is the limit, is {saturating_step_tokens(best.cost)}"
    if best.placement is not None:
        held, layers = len(best.placement.layers), len(best.cost.config.layers)
        ring = f", the others pass through a ring of {best.placement.ring_layers}" if held < layers else ""
        yield f"{held} of {layers} layers stay on the device{ring}"
    if plan.disk_layers:
        read = read_bytes(best.cost.config, plan.disk_layers, plan.disk_ring_layers)
        known = "" if hardware.disk_bytes_per_second else ", which is assumed (--disk-bandwidth)"
        yield (
            f"the experts of {len(plan.disk_layers)} layers stay on disk, of which a step reads {read / 1e9:.2f} GB in "
            f"{read / hardware.file_bytes_per_second:.2f} s at {hardware.file_bytes_per_second / 1e9:.2f} GB/s{known}"
        )
    if prediction.preemptions:
        yield f"{prediction.preemptions} requests are preempted, as the cache is short"


def _parts_of(plan: Plan) -> str:
    most = "at most " if plan.choose_parts else ""
    return f"{most}{plan.parts} {'part' if plan.parts == 1 else 'parts'}"
