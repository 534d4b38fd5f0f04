"""What a step's rows and parts take, by a cost model that follows what the steps so far were measured to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moelens.cost.lanes import LaneCosts
from moelens.cost.seconds import CostModel
from moelens.cost.workload import RowSeconds, StepShape
from moelens.pipeline.task import Stage
from moelens.planning.drift import Drift


class StepPricing:
    """A `moelens.schedule.split.Pricing`, in seconds of `cost` times what each stage was lately measured over that."""

    def __init__(self, cost: CostModel) -> None:
        self._drift = Drift()
        self._expected = LaneCosts.of(cost)
        self._lanes = self._expected
        self.observed_steps = 0

    @property
    def cost(self) -> CostModel:
        """The cost model as it stands."""
        return self._lanes.cost

    def row_seconds(self, shape: StepShape) -> RowSeconds:
        return self._lanes.row_seconds(shape)

    def best_parts(self, shape: StepShape, most: int) -> int:
        return self._lanes.best_parts(shape, most)

    def observe(self, parts: Sequence[StepShape], stage_seconds: Mapping[Stage, float]) -> None:
        expected = dict.fromkeys(Stage, 0.0)
        for part in parts:
            for stage, seconds in self._expected.stage_seconds(part).items():
                expected[stage] += seconds
        if not stage_seconds.get(Stage.LOAD_EXPERTS):  # or fewer weights came than are expected
            expected[Stage.LOAD] = self._expected.load_seconds
        self._drift.observe(expected, stage_seconds)
        self.observed_steps += 1
        scales = self._drift.scales
        self._lanes = LaneCosts(replace(self._expected.cost, scales=scales), self._expected.kinds)
