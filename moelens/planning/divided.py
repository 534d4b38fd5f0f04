"""What of a step's layers is expected to be divided between host and device, and what each side's tasks then need."""

from __future__ import annotations

from dataclasses import replace

from moelens.cost.division import DividedLayer
from moelens.cost.lanes import LaneCosts
from moelens.cost.seconds import CostModel, Demand
from moelens.cost.work import expert_weight_bytes, experts_work
from moelens.cost.workload import LayerSeconds, StepShape
from moelens.models.config import MoEFFN
from moelens.pipeline.task import Experts, LayerLoad, Stage

STAGES = (Stage.LOAD_EXPERTS, Stage.FINISH_ROWS, Stage.UPLOAD_ROWS, Stage.EXPERTS)


class ExpectedDivision:
    """The division that `StepPricing` makes by the router's choice, as it is expected before anybody has chosen."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._lanes = LaneCosts.of(cost)

    def loads(self, shape: StepShape) -> tuple[LayerLoad, ...]:
        """How each layer's weights come in a step of `shape`."""
        own = self._lanes.layer_seconds(shape)
        return tuple(
            replace(load, experts=Experts.DIVIDED) if load.streams and self._pays(layer, shape, own) else load
            for layer, load in enumerate(self._cost.layer_loads(shape.tokens))
        )

    def demand(self, stage: Stage, layer: int, shape: StepShape) -> Demand:
        """Of a task of a divided layer, for a part of `shape`."""
        cost, divided = self._cost, DividedLayer(self._cost, layer)
        last = layer + 1 == len(cost.config.layers)
        rows = shape.logit_rows if last else shape.tokens
        host = divided.expected_rows_of_host(rows, self._lanes.layer_seconds(shape).attending)
        of_host, of_device = (cost.routing.touched(divided.ffn, of) for of in (host, rows - host))
        each_bytes = expert_weight_bytes(cost.config, layer) / divided.ffn.experts
        if stage is Stage.LOAD_EXPERTS:
            return Demand(divided.link_seconds(of_device), cost.moved_bytes(of_device * each_bytes))
        if stage is Stage.FINISH_ROWS:
            return Demand(divided.host_seconds(host, of_host), of_host * each_bytes)
        if stage is Stage.UPLOAD_ROWS:
            return cost.demand(stage, layer, replace(shape, decode_tokens=host, prefill_tokens=0, logit_rows=host))
        assert cost.hardware.device is not None
        if rows == host:
            return Demand(cost.hardware.device.task_seconds)
        work = experts_work(cost.config, layer, rows - host, of_device)
        shared = work.bytes if cost.hardware.device_shares_memory else 0.0
        return Demand(divided.device_seconds(rows - host, of_device), shared)

    def _pays(self, layer: int, shape: StepShape, own: LayerSeconds) -> bool:
        is_routed = isinstance(self._cost.config.layers[layer].ffn, MoEFFN)
        return is_routed and DividedLayer(self._cost, layer).pays(shape.tokens, own)
