"""How long a stage takes on a machine: its work divided by what the machine was measured to do.

Row-wise stages are looked up by their arithmetic intensity (operations per byte of weights), which tells a matrix that
is read from one that is multiplied whatever its size; attention by the keys that a row sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moelens.cost.hardware import Curve, HardwareSpec, Processor
from moelens.cost.routing import EVEN, RoutingLoad
from moelens.cost.work import (
    Work,
    brings_routed,
    expert_weight_bytes,
    layer_weight_bytes,
    stage_work,
)
from moelens.cost.workload import StepShape
from moelens.models.config import ModelConfig
from moelens.pipeline.task import Experts, LayerLoad, Resource, Stage
from moelens.plan import Placement

# Names of curves in Processor.stages beside those of the stages: what decode and prefill rows cost apart, and
# the seconds that a call takes beside those of its rows, by the number of rows.
STORE_DECODES = "store kv, decodes"
STORE_PREFILLS = "store kv, prefills"
DECODES_CALL = "attend decodes, a call"
PREFILLS_CALL = "attend prefills, a call"

ROW_WISE = (Stage.BEFORE_ATTENTION, Stage.AFTER_ATTENTION, Stage.LOGITS)
# Of a stage without a curve of its own, the one whose curve is used.
_LIKE = dict.fromkeys((Stage.ROUTE, Stage.EXPERTS, Stage.FINISH_ROWS), Stage.AFTER_ATTENTION)
HUGE_PAGE_BYTES = 2 << 20  # the cache asks for these: of each array, memory comes in such pieces
COPIED = 3.0  # bytes of memory that a byte takes which is copied within it: read, taken into a cache, written


@dataclass(frozen=True)
class Demand:
    """What a task asks of a machine: its seconds where nothing else runs, and bytes of the host's memory it moves."""

    seconds: float
    host_bytes: float = 0.0


@dataclass(frozen=True)
class CostModel:
    """A model on a machine.

    A device's weights come in `load_chunks` chunks a layer, but for those that `placement` leaves there (None: all
    come). The experts of `disk_layers` are read from files first. `scales` multiply the seconds of stages: what was
    measured in the run itself over what was expected.
    """

    config: ModelConfig
    hardware: HardwareSpec
    routing: RoutingLoad = EVEN
    load_chunks: int = 1
    placement: Placement | None = None
    disk_layers: tuple[int, ...] = ()
    scales: Mapping[Stage, float] = field(default_factory=dict)

    def demand(self, stage: Stage, layer: int, shape: StepShape, chunk: int = 0) -> Demand:
        """Of one task of `stage`; of a LOAD, chunk 0 is the layer's front and each other one of its experts' chunks."""
        if stage is Stage.LOAD:
            return self._load(layer, chunk)
        if stage in (Stage.READ, Stage.READ_EXPERTS):
            return self._read(stage, layer, shape)
        work = stage_work(stage, self.config, layer, shape, self.routing)
        seconds, host_bytes = self._alone(stage, work, shape)
        return Demand(seconds * self.scales.get(stage, 1.0), host_bytes)

    def layer_loads(self, tokens: int | None = None) -> tuple[LayerLoad, ...]:
        """What of each layer has to be brought to the device in a step of so many rows (None: of many)."""
        return tuple(self._layer_load(layer, tokens) for layer in range(len(self.config.layers)))

    def _layer_load(self, layer: int, tokens: int | None) -> LayerLoad:
        from_disk = layer in self.disk_layers
        routed = tokens is not None and brings_routed(self.config.layers[layer].ffn, tokens)
        if self.hardware.device is None:  # nothing comes, but perhaps from disk
            return LayerLoad(experts=Experts.ROUTED if routed and from_disk else Experts.RESIDENT, from_disk=from_disk)
        if self.placement is None:
            return LayerLoad(front=True, experts=Experts.WHOLE, from_disk=from_disk)
        if layer in self.placement.layers:
            return LayerLoad()
        experts = Experts.ROUTED if routed else Experts.WHOLE
        return LayerLoad(front=not self.placement.fronts, experts=experts, from_disk=from_disk)

    def moved_bytes(self, nbytes: float) -> float:
        """Of the host's memory, by a transfer of so many."""
        return nbytes * (COPIED if self.hardware.device_shares_memory else 1.0)

    def step_overhead_seconds(self, rows: int) -> float:
        """What a step of so many rows takes outside of its tasks."""
        return self.hardware.step_seconds + rows * self.hardware.row_seconds

    def fresh_seconds(self, tokens_before: int, tokens: int) -> float:
        """What it takes to get the memory of a cache that held `tokens_before` tokens at most and now holds more."""
        fresh = 0
        for layer in self.config.layers:
            row = layer.attention.kv_heads * layer.attention.head_dim * self.config.dtype.itemsize
            pages = -(-tokens * row // HUGE_PAGE_BYTES) - -(-tokens_before * row // HUGE_PAGE_BYTES)
            fresh += 2 * pages * HUGE_PAGE_BYTES  # keys and values
        return fresh * self.hardware.fresh_seconds_per_byte

    def _read(self, stage: Stage, layer: int, shape: StepShape) -> Demand:
        """Experts; the host's memory takes them in, gives them out to be packed, and takes that in."""
        config = replace(self.config, quantization=None)  # files are not
        nbytes = stage_work(stage, config, layer, shape, self.routing).bytes
        seconds = nbytes / self.hardware.file_bytes_per_second * self.scales.get(stage, 1.0)
        return Demand(seconds + self.hardware.host.task_seconds, 3.0 * nbytes)

    def _load(self, layer: int, chunk: int) -> Demand:
        if self.hardware.device is None:
            return Demand(self.hardware.host.task_seconds)
        experts = expert_weight_bytes(self.config, layer)
        nbytes = experts / self.load_chunks if chunk else layer_weight_bytes(self.config, layer) - experts
        seconds = nbytes / self.hardware.to_device_bytes_per_second * self.scales.get(Stage.LOAD, 1.0)
        return Demand(seconds + self.hardware.device.task_seconds, self.moved_bytes(nbytes))

    def _alone(self, stage: Stage, work: Work, shape: StepShape) -> tuple[float, float]:
        hardware, resource = self.hardware, stage.resource
        if resource in (Resource.TO_DEVICE, Resource.TO_HOST):
            if hardware.device is None:
                return hardware.host.task_seconds, 0.0
            down = resource is Resource.TO_HOST
            rate = hardware.to_host_bytes_per_second if down else hardware.to_device_bytes_per_second
            return work.bytes / rate + hardware.device.task_seconds, self.moved_bytes(work.bytes)
        if resource is Resource.HOST or hardware.device is None:
            return stage_seconds(hardware.host, stage, work, shape), work.bytes
        return stage_seconds(hardware.device, stage, work, shape), work.bytes if hardware.device_shares_memory else 0.0


def stage_seconds(processor: Processor, stage: Stage, work: Work, shape: StepShape) -> float:
    """Of a stage on one processor: by its measured curves, or else by the roofline of its two rates."""
    measured = _measured_seconds(processor, stage, work, shape) if work.bytes else 0.0
    if measured is None:
        measured = max(work.flops / processor.flops_per_second, work.bytes / processor.bytes_per_second)
    return measured + processor.task_seconds


def _measured_seconds(processor: Processor, stage: Stage, work: Work, shape: StepShape) -> float | None:
    curves = processor.stages
    if stage is Stage.STORE_KV and STORE_DECODES in curves:
        per_row = work.kv_bytes / shape.tokens
        decodes = curves[STORE_DECODES].at(max(1, shape.decode_tokens)) * shape.decode_tokens
        return (decodes + curves[STORE_PREFILLS].at(max(1, shape.prefill_tokens)) * shape.prefill_tokens) * per_row
    if stage is Stage.ATTEND_RESUMED and Stage.ATTEND_PREFILLS.value in curves:
        keys = shape.resumed_pairs / shape.resumed_tokens
        return _prompt_seconds(curves, keys, shape.resumed_tokens, work)
    curve = curves.get(stage.value) or curves.get(_LIKE.get(stage, stage).value)
    if curve is None:
        return None
    if stage is Stage.SAMPLE:
        return curve.at(shape.logit_rows) * work.bytes
    if stage is Stage.ATTEND_DECODES:
        return curve.at(shape.decode_context / shape.decode_tokens) * work.kv_bytes + curves[DECODES_CALL].at(
            shape.decode_tokens
        )
    if stage is Stage.ATTEND_PREFILLS:
        tokens = shape.prefill_tokens - shape.resumed_tokens
        return _prompt_seconds(curves, (shape.prefill_pairs - shape.resumed_pairs) / tokens, tokens, work)
    return curve.at(work.flops / work.weight_bytes) * work.weight_bytes


def _prompt_seconds(curves: Mapping[str, Curve], keys: float, tokens: int, work: Work) -> float:
    return curves[Stage.ATTEND_PREFILLS.value].at(keys) * work.flops + curves[PREFILLS_CALL].at(tokens)
