"""How long a stage takes on a machine: its work divided by what the machine was measured to do.

Row-wise stages are looked up by their arithmetic intensity (operations per byte of weights), which tells a matrix that
is read from one that is multiplied whatever its size; attention by the keys that a row sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.work import EVEN, RoutingLoad, Work, stage_work
from moelens.cost.workload import StepShape
from moelens.models.config import ModelConfig
from moelens.pipeline.task import Resource, Stage

# Names of the curves in Processor.stages. A stage of which decode and prefill rows cost otherwise has one for each.
STORE_DECODES = "store kv, decodes"
STORE_PREFILLS = "store kv, prefills"
ATTEND_ONE = "attend decodes, one request"
ATTEND_CALL = "attend prefills, of itself"  # seconds of a call, whatever its rows

ROW_WISE = (Stage.BEFORE_ATTENTION, Stage.AFTER_ATTENTION, Stage.LOGITS)


@dataclass(frozen=True)
class Demand:
    """What a task asks of a machine: its seconds where nothing else runs, and bytes of the host's memory it moves."""

    seconds: float
    host_bytes: float = 0.0


@dataclass(frozen=True)
class CostModel:
    """A model on a machine.

    `scales` multiply the seconds of stages: what was measured in the run itself over what was expected.
    """

    config: ModelConfig
    hardware: HardwareSpec
    routing: RoutingLoad = EVEN
    load_chunks: int = 1
    scales: Mapping[Stage, float] = field(default_factory=dict)

    def demand(self, stage: Stage, layer: int, shape: StepShape) -> Demand:
        """Of one task of `stage`; a LOAD is one of `load_chunks` of its layer."""
        work = stage_work(stage, self.config, layer, shape, self.routing)
        if stage is Stage.LOAD:
            return self._load(work)
        seconds, host_bytes = self._alone(stage, work, shape)
        return Demand(seconds * self.scales.get(stage, 1.0), host_bytes)

    def step_overhead_seconds(self, rows: int) -> float:
        """What a step of so many rows takes outside of its tasks."""
        return self.hardware.step_seconds + rows * self.hardware.row_seconds

    def fresh_seconds(self, new_tokens: int) -> float:
        """What it takes to get memory for so many tokens of context that the cache never held before."""
        return new_tokens * self.config.kv_bytes_per_token * self.hardware.fresh_seconds_per_byte

    def _load(self, work: Work) -> Demand:
        if self.hardware.device is None:
            return Demand(self.hardware.host.task_seconds)
        nbytes = work.bytes / self.load_chunks
        seconds = nbytes / self.hardware.to_device_bytes_per_second * self.scales.get(Stage.LOAD, 1.0)
        return Demand(seconds, nbytes)

    def _alone(self, stage: Stage, work: Work, shape: StepShape) -> tuple[float, float]:
        hardware, resource = self.hardware, stage.resource
        if resource in (Resource.TO_DEVICE, Resource.TO_HOST):
            if hardware.device is None:
                return hardware.host.task_seconds, 0.0
            down = resource is Resource.TO_HOST
            rate = hardware.to_host_bytes_per_second if down else hardware.to_device_bytes_per_second
            return work.bytes / rate + hardware.device.task_seconds, work.bytes
        if resource is Resource.HOST or hardware.device is None:
            return stage_seconds(hardware.host, stage, work, shape), work.bytes
        return stage_seconds(hardware.device, stage, work, shape), work.bytes if hardware.device_shares_memory else 0.0


def stage_seconds(processor: Processor, stage: Stage, work: Work, shape: StepShape) -> float:
    """Of a stage on one processor: by its measured curves, or else by the roofline of its two rates."""
    if not work.bytes:
        return processor.task_seconds
    if stage in ROW_WISE and (curve := processor.stages.get(stage.value)):
        return curve.at(work.flops / work.weight_bytes) * work.weight_bytes + processor.task_seconds
    if stage is Stage.STORE_KV and STORE_DECODES in processor.stages:
        return _store_seconds(processor, work, shape) + processor.task_seconds
    if stage is Stage.ATTEND_DECODES and (curve := processor.stages.get(stage.value)):
        many = curve.at(shape.decode_context / shape.decode_tokens)
        one = processor.stages[ATTEND_ONE].at(shape.decode_context / shape.decode_tokens)
        # The rows are dealt out over the threads: what one alone takes longer weighs less the more there are.
        each = many + (one - many) / shape.decode_tokens
        return each * work.kv_bytes + processor.task_seconds
    if stage is Stage.ATTEND_PREFILLS and (curve := processor.stages.get(stage.value)):
        of_itself = processor.stages[ATTEND_CALL].at(1.0) + processor.task_seconds
        return curve.at(shape.prefill_pairs / shape.prefill_tokens) * work.flops + of_itself
    least = max(work.flops / processor.flops_per_second, work.bytes / processor.bytes_per_second)
    return least + processor.task_seconds


def _store_seconds(processor: Processor, work: Work, shape: StepShape) -> float:
    per_row = work.kv_bytes / shape.tokens
    decodes = processor.stages[STORE_DECODES].at(max(1, shape.decode_tokens)) * shape.decode_tokens
    prefills = processor.stages[STORE_PREFILLS].at(max(1, shape.prefill_tokens)) * shape.prefill_tokens
    return (decodes + prefills) * per_row
