"""What a step's rows and parts take, by a cost model that follows what the steps so far were measured to take."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import torch

from moelens.cost.division import DividedLayer
from moelens.cost.lanes import LaneCosts, first_of_kind
from moelens.cost.routing import RoutingLoad
from moelens.cost.seconds import CostModel
from moelens.cost.workload import LayerSeconds, RowSeconds, StepShape
from moelens.pipeline.task import Stage
from moelens.planning.drift import Drift


class StepPricing:
    """A `moelens.schedule.split.Pricing` and a `moelens.memory.device.DivideRows`.

    In seconds of `cost`, times what each stage was lately measured to take over that.
    """

    def __init__(self, cost: CostModel) -> None:
        self._drift = Drift()
        self._expected = LaneCosts.of(cost)
        self._lanes = self._expected
        self.observed_steps = 0
        self._lock = threading.Lock()
        self._divided = dict.fromkeys((Stage.FINISH_ROWS, Stage.LOAD_EXPERTS), 0.0)  # expected of the step under way
        self._of_layer: dict[StepShape, LayerSeconds] = {}
        self._paying: dict[tuple[int, StepShape], bool] = {}
        self._kinds = first_of_kind(cost.config)

    @property
    def cost(self) -> CostModel:
        """The cost model as it stands."""
        return self._lanes.cost

    def row_seconds(self, shape: StepShape) -> RowSeconds:
        return self._lanes.row_seconds(shape)

    def best_parts(self, shape: StepShape, most: int) -> int:
        return self._lanes.best_parts(shape, most)

    def pays(self, layer: int, shape: StepShape) -> bool:
        of = self._kinds[layer], shape
        if of not in self._paying:
            divided = DividedLayer(self._lanes.cost, layer)
            self._paying[of] = divided.pays(shape.tokens, self._layer_seconds(shape))
        return self._paying[of]

    def rows_of_host(self, layer: int, ids: torch.Tensor, present: Set[int], beside: StepShape) -> Sequence[int]:
        expected, now = (DividedLayer(lanes.cost, layer) for lanes in (self._expected, self._lanes))
        chosen: list[list[int]] = ids.tolist()
        rows = now.rows_of_host(chosen, present, self._layer_seconds(beside).attending)
        host = {expert for row in rows for expert in chosen[row]}
        brought = {expert for row in set(range(len(chosen))) - set(rows) for expert in chosen[row]} - present
        with self._lock:  # parts are divided by threads of their lanes
            self._divided[Stage.FINISH_ROWS] += expected.host_seconds(len(rows), len(host))
            self._divided[Stage.LOAD_EXPERTS] += expected.link_seconds(len(brought))
        return rows

    def _layer_seconds(self, shape: StepShape) -> LayerSeconds:
        with self._lock:
            if shape not in self._of_layer:
                self._of_layer[shape] = self._lanes.layer_seconds(shape)
            return self._of_layer[shape]

    def free_prompt_rows(self, decodes: StepShape, most: int) -> int:
        return self._lanes.free_prompt_rows(decodes, most)

    def observe(self, parts: Sequence[StepShape], stage_seconds: Mapping[Stage, float], routing: RoutingLoad) -> None:
        expected = dict.fromkeys(Stage, 0.0)
        for part in parts:
            for stage, seconds in self._expected.stage_seconds(part).items():
                expected[stage] += seconds
        with self._lock:
            expected |= self._divided
            self._divided = dict.fromkeys(self._divided, 0.0)
            self._of_layer.clear()
            self._paying.clear()
        if not stage_seconds.get(Stage.LOAD_EXPERTS):  # or fewer weights came than are expected
            expected[Stage.LOAD] = self._expected.load_seconds
        self._drift.observe(expected, stage_seconds)
        self.observed_steps += 1
        if routing is not self._expected.cost.routing:
            self._expected = replace(self._expected, cost=replace(self._expected.cost, routing=routing))
        self._lanes = replace(self._expected, cost=replace(self._expected.cost, scales=self._drift.scales))
