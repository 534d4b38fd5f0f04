"""Says what a plan is expected to do: a table that a person reads, and the same as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.pipeline.task import Resource
from moelens.plan import Plan
from moelens.planning.bound import Bound, bound
from moelens.planning.disk import read_bytes
from moelens.planning.predict import memory_bytes, predict
from moelens.planning.search import Choice, saturating_step_tokens
from moelens.planning.simulate import Prediction

LEAST_GAIN = 1.03  # of a lift that is worth a line


@dataclass(frozen=True)
class Lift:
    """What more of a resource would gain: the prediction's speed times `gain`, and what limits then."""

    what: str
    gain: float
    then: str


@dataclass(frozen=True)
class Outlook:
    """All that is said of a job on a machine."""

    model: str
    workload: Workload
    choice: Choice
    bound: Bound
    lifts: tuple[Lift, ...]

    @property
    def prediction(self) -> Prediction:
        return self.choice.prediction


def look_ahead(model: str, choice: Choice, workload: Workload) -> Outlook:
    """The bound beside the prediction, and what would lift the limit."""
    kv_bytes = choice.plan.kv_tokens * choice.cost.config.kv_bytes_per_token
    return Outlook(model, workload, choice, bound_of(choice, workload, kv_bytes), tuple(_lifts(choice, workload)))


def bound_of(choice: Choice, workload: Workload, kv_bytes: float) -> Bound:
    """What no schedule exceeds with so much memory for the cache, and the choice's experts on disk."""
    cost, plan = choice.cost, choice.plan
    return bound(
        cost.config,
        cost.hardware,
        kv_bytes=kv_bytes,
        prompt_tokens=workload.mean_prompt_tokens,
        output_tokens=workload.mean_output_tokens,
        routing=cost.routing,
        disk_bytes=read_bytes(cost.config, plan.disk_layers, plan.disk_ring_layers),
    )


def limit_of(cost: CostModel, prediction: Prediction) -> str:
    """The resource that limits a job, in words; on a host alone, whether it reads or computes."""
    if prediction.limit is Resource.DISK and prediction.utilisation(Resource.DISK) > 0.5:
        return "the disk"
    if cost.hardware.device is not None:
        busiest = prediction.limit
        return {Resource.TO_DEVICE: "the link", Resource.HOST: "the host's attention"}.get(busiest, busiest.value)
    stage = max(prediction.stage_seconds, key=lambda one: prediction.stage_seconds[one])
    return f"the processor, most of all {stage.value}"


def to_text(outlook: Outlook) -> str:
    """A table of a dozen lines."""
    return "\n".join(f"{name:12}{line}" for name, line in _lines(outlook)) + "\n"


def to_json(outlook: Outlook) -> dict[str, Any]:
    """Everything, with units in the names."""
    p, choice = outlook.prediction, outlook.choice
    return {
        "model": outlook.model,
        "hardware": choice.cost.hardware.name,
        "requests": outlook.workload.requests,
        "mean_prompt_tokens": outlook.workload.mean_prompt_tokens,
        "mean_output_tokens": outlook.workload.mean_output_tokens,
        "bound": dataclasses.asdict(outlook.bound),
        "prediction": {
            "seconds": p.seconds,
            "steps": p.steps,
            "tokens_per_second": p.tokens_per_second,
            "output_tokens_per_second": p.output_tokens_per_second,
            "prefill_rows": p.prefill_rows,
            "decode_rows": p.decode_rows,
            "preemptions": p.preemptions,
            "limit": limit_of(choice.cost, p),
            "busy_share": {resource.value: p.utilisation(resource) for resource in Resource},
            "stage_seconds": {stage.value: seconds for stage, seconds in p.stage_seconds.items() if seconds},
            "outside_seconds": p.outside_seconds,
            "moments": [
                {
                    "begin_seconds": m.begin_seconds,
                    "end_seconds": m.end_seconds,
                    "limit": m.limit.value,
                    "busy_share": {resource.value: share for resource, share in m.busy.items()},
                }
                for m in p.moments
            ],
        },
        "memory_bytes": dict(memory_of(choice)),
        "plan": dataclasses.asdict(choice.plan),
        "reasons": list(choice.reasons),
        "lifts": [dataclasses.asdict(lift) for lift in outlook.lifts],
    }


def memory_of(choice: Choice) -> Mapping[str, int]:
    """Bytes by purpose, on the host and on the device."""
    purposes = dict(memory_bytes(choice.cost.config, choice.plan))
    if choice.placement is not None:
        del purposes["activations"]
        purposes["device: weights that stay"] = choice.placement.weight_bytes
        purposes["device: ring"] = choice.placement.ring_bytes
        purposes["device: activations"] = choice.placement.activation_bytes + choice.placement.transfer_bytes
    return purposes


def _lines(outlook: Outlook) -> Iterator[tuple[str, str]]:
    p, most, choice, work = outlook.prediction, outlook.bound, outlook.choice, outlook.workload
    yield (
        "job",
        f"{outlook.model} on {choice.cost.hardware.name}: {work.requests} requests of {work.mean_prompt_tokens:.0f} "
        f"prompt and {work.mean_output_tokens:.0f} output tokens",
    )
    yield (
        "bound",
        f"{most.tokens_per_second:,.0f} tokens/s ({most.generated_tokens_per_second:,.0f} generated), by {most.limit}",
    )
    yield (
        "prediction",
        f"{p.tokens_per_second:,.0f} tokens/s ({p.output_tokens_per_second:,.0f} generated), "
        f"{100 * p.tokens_per_second / most.tokens_per_second:.0f} % of the bound",
    )
    yield "time", f"{_duration(p.seconds)} in {p.steps} steps of {p.seconds / max(1, p.steps):.3g} s"
    yield "limit", limit_of(choice.cost, p)
    if choice.plan.disk_layers:
        yield "disk", f"busy {100 * p.utilisation(Resource.DISK):.0f} % of the time"
    if choice.cost.hardware.device is not None:
        lanes = [resource for resource in Resource if resource is not Resource.DISK]
        yield "busy", ", ".join(f"{resource.value} {100 * p.utilisation(resource):.0f} %" for resource in lanes)
    else:
        total = sum(p.stage_seconds.values())
        largest = sorted(p.stage_seconds.items(), key=lambda pair: -pair[1])[:5]
        yield "stages", ", ".join(f"{stage.value} {100 * seconds / total:.0f} %" for stage, seconds in largest)
    for purpose, nbytes in memory_of(choice).items():
        yield "memory", f"{nbytes / 1e9:8.2f} GB {purpose}"
    for reason in choice.reasons:
        yield "plan", reason
    for lift in outlook.lifts:
        yield "lift", f"with {lift.what}: {lift.gain:.2f}×, then {lift.then} is the limit"
    if not outlook.lifts:
        yield "lift", f"nothing that was tried gains {100 * (LEAST_GAIN - 1):.0f} %"


def _lifts(choice: Choice, workload: Workload) -> Iterator[Lift]:
    before = predict(choice.cost, choice.plan, workload, most_rows=0).seconds
    for what, cost, plan in _lifted(choice.cost, choice.plan):
        job = predict(cost, plan, workload, most_rows=0)
        if before / job.seconds >= LEAST_GAIN:
            yield Lift(what, before / job.seconds, limit_of(cost, job))


def _lifted(cost: CostModel, plan: Plan) -> Iterator[tuple[str, CostModel, Plan]]:
    """What is tried: more of what, and the costs and the plan with it."""
    held = plan.kv_tokens * cost.config.kv_bytes_per_token
    for factor in (1.5, 2.0, 4.0):
        blocks = round(plan.kv_blocks * factor)
        requests, rows = plan.max_requests, max(plan.max_requests, plan.step_tokens)
        if cost.hardware.device is not None:
            requests = round(requests * factor)
            rows = max(requests, plan.step_tokens)
            rows = max(rows, min(round(rows * factor), 2 * saturating_step_tokens(cost)))
        larger = dataclasses.replace(plan, kv_blocks=blocks, max_requests=requests, step_tokens=rows)
        yield f"{held * (factor - 1) / 1e9:.0f} GB more memory for the cache", cost, larger
    if plan.disk_layers:
        yield "memory for all weights", cost, dataclasses.replace(plan, disk_layers=())
    for what, hardware in _better(cost.hardware, bool(plan.disk_layers)):
        yield what, dataclasses.replace(cost, hardware=hardware), plan


def _better(hardware: HardwareSpec, reads: bool) -> Iterator[tuple[str, HardwareSpec]]:
    def replace(**fields: Any) -> HardwareSpec:
        return dataclasses.replace(hardware, **fields)

    if reads:
        yield "a disk twice as fast", replace(disk_bytes_per_second=2 * hardware.file_bytes_per_second)
    if hardware.device is not None:
        link = 2 * hardware.to_device_bytes_per_second
        yield "a link twice as fast", replace(to_device_bytes_per_second=link)
        yield "a device twice as fast", replace(device=_twice(hardware.device))
        rate = 2 * hardware.host.bytes_per_second
        memory = dataclasses.replace(hardware.host, bytes_per_second=rate)
        yield "host memory twice as fast", replace(host=memory)
    elif not hardware.host.stages:
        yield "a processor and memory twice as fast", replace(host=_twice(hardware.host))


def _twice(processor: Processor) -> Processor:
    flops, rate = 2 * processor.flops_per_second, 2 * processor.bytes_per_second
    return dataclasses.replace(processor, flops_per_second=flops, bytes_per_second=rate)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
