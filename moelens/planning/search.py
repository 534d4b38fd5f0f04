"""Chooses a plan: enumerate, predict, simulate the best few, and say why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
from moelens.planning.predict import predict
from moelens.planning.simulate import Prediction

REQUESTS = (256, 512, 1024, 2048, 4096)
STEP_TOKENS = (1024, 2048, 4096, 8192)
OF_SATURATION = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # steps tried on a device, in units of n_real
FINALISTS = 3  # that are simulated, where that does not take long
WORTH = 1.02  # what another plan must gain to be taken in place of the default


@dataclass(frozen=True)
class Choice:
    """A plan with what lies on the device, the longest sequence (tokens), what it is expected to do, and why."""

    plan: Plan
    placement: Placement | None
    max_model_len: int
    cost: CostModel
    prediction: Prediction
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
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
    simulated_rows: int = 150_000,
) -> Choice:
    """The plan that is expected to finish `workload` first, with everything kept that `limits` fix.

    The default plan is always among those compared, and wins unless another gains 2 %. Raises what `choose_plan`
    raises, and CapacityError when no plan can hold the workload.
    """
    default = _make(cost, sizes, limits, threads)
    tried: list[tuple[float, _Candidate]] = []
    for candidate in (default, *_others(cost, sizes, limits, threads)):
        if all(candidate.plan != other.plan for _, other in tried):
            tried.append((_seconds(candidate, workload, 0), candidate))
    finalists = sorted(tried, key=lambda pair: pair[0])[:FINALISTS]
    if all(candidate is not default for _, candidate in finalists):
        finalists.append(tried[0])
    exact = [(_seconds(candidate, workload, simulated_rows), candidate) for _, candidate in finalists]
    usual = next(seconds for seconds, candidate in exact if candidate is default)
    seconds, best = min(exact, key=lambda pair: pair[0])
    if usual < seconds * WORTH:
        seconds, best = usual, default
    prediction = predict(best.cost, best.plan, workload, most_rows=simulated_rows)
    reasons = tuple(_reasons(best, default, prediction, usual / seconds, len(tried)))
    return Choice(best.plan, best.placement, best.max_model_len, best.cost, prediction, reasons)


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


def device_sizes(config: ModelConfig) -> DeviceSizes:
    """What a device would hold of a model, by its config alone."""
    resident = 2 * config.vocab * config.hidden * config.dtype.itemsize
    return DeviceSizes(layer_bytes(config), resident, _transfers(config))


def _transfers(config: ModelConfig) -> Callable[[int], int]:
    """Room for q, k, v and attended rows on their way, of two parts."""

    def of(tokens: int) -> int:
        shape = StepShape(decode_tokens=tokens, decode_context=tokens)
        stages = (Stage.OFFLOAD, Stage.UPLOAD)
        return round(sum(stage_work(stage, config, 0, shape).bytes for stage in stages))

    return of


def _make(cost: CostModel, sizes: Sizes, limits: Limits, threads: int) -> _Candidate:
    plan, length = choose_plan(cost.config, sizes, limits, threads)
    cost = dataclasses.replace(cost, disk_layers=plan.disk_layers)
    device = cost.hardware.device
    if device is None:
        return _Candidate(plan, None, length, cost)
    needs = device_sizes(cost.config)
    plan, placement = fit(for_device(plan, needs), cost.config, needs, int(device.memory_bytes))
    own = dataclasses.replace(cost, load_chunks=plan.load_chunks, placement=placement)
    return _Candidate(plan, placement, length, own)


def _others(cost: CostModel, sizes: Sizes, limits: Limits, threads: int) -> Iterator[_Candidate]:
    for requests, step_tokens in _sizes_of_steps(cost, limits):
        if step_tokens < requests:
            continue
        try:
            limited = dataclasses.replace(limits, max_requests=requests, step_tokens=step_tokens)
            yield _make(cost, sizes, limited, threads)
        except CapacityError:
            continue  # its activations leave too little for the cache, or the device's memory is too small for it


def _sizes_of_steps(cost: CostModel, limits: Limits) -> Iterator[tuple[int, int]]:
    """Requests and rows of a step, where the user fixed neither."""
    if cost.hardware.device is None:
        for requests in (limits.max_requests,) if limits.max_requests else REQUESTS:
            for step_tokens in (limits.step_tokens,) if limits.step_tokens else STEP_TOKENS:
                yield requests, step_tokens
        return
    saturating = saturating_step_tokens(cost)
    wanted: Sequence[int] = [max(32, round(share * saturating)) for share in OF_SATURATION]
    for step_tokens in (limits.step_tokens,) if limits.step_tokens else wanted:
        yield limits.max_requests or step_tokens, step_tokens


def _seconds(candidate: _Candidate, workload: Workload, most_rows: int) -> float:
    try:
        return predict(candidate.cost, candidate.plan, workload, most_rows=most_rows).seconds
    except CapacityError:
        return math.inf


def _layer_seconds(cost: CostModel, tokens: int) -> float:
    shape = StepShape(prefill_tokens=tokens, prefill_pairs=tokens)
    stages = (Stage.BEFORE_ATTENTION, Stage.AFTER_ATTENTION)
    return sum(cost.demand(stage, 0, shape).seconds for stage in stages)


def _reasons(best: _Candidate, default: _Candidate, prediction: Prediction, gain: float, tried: int) -> Iterator[str]:
    plan = best.plan
    if best is default:
        yield f"the default, which none of {tried - 1} others beats by 2 %"
    else:
        yield f"{gain:.2f} times the default's speed, the best of {tried} plans"
    yield f"steps of {plan.step_tokens} rows and {plan.max_requests} requests at most, in {_parts(plan)}"
    yield f"the cache holds {plan.kv_tokens} tokens of context"
    hardware: HardwareSpec = best.cost.hardware
    if hardware.device is not None:
        yield f"n_real, from where on the device and not the link is the limit, is {saturating_step_tokens(best.cost)}"
    if best.placement is not None and best.placement.layers:
        yield f"{len(best.placement.layers)} of {len(best.cost.config.layers)} layers stay on the device"
    if plan.disk_layers:
        read = read_bytes(best.cost.config, plan.disk_layers, plan.disk_ring_layers)
        known = "" if hardware.disk_bytes_per_second else ", which is assumed (--disk-bandwidth)"
        yield (
            f"the experts of {len(plan.disk_layers)} layers stay on disk, of which a step reads {read / 1e9:.2f} GB in "
            f"{read / hardware.file_bytes_per_second:.2f} s at {hardware.file_bytes_per_second / 1e9:.2f} GB/s{known}"
        )
    if prediction.preemptions:
        yield f"{prediction.preemptions} requests are preempted, as the cache is short"


def _parts(plan: Plan) -> str:
    most = "at most " if plan.choose_parts else ""
    return f"{most}{plan.parts} {'part' if plan.parts == 1 else 'parts'}"
