"""What the parts of a step take on each lane, and into how many a step is best cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from moelens.cost.footprint import LOGIT_ROWS
from moelens.cost.seconds import CostModel
from moelens.cost.workload import LayerSeconds, RowSeconds, StepShape
from moelens.models.config import ModelConfig
from moelens.pipeline.task import OF_LOGITS, Experts, Resource, Stage

ATTENDING = (Stage.STORE_KV, Stage.ATTEND_DECODES, Stage.ATTEND_RESUMED)
WORTH = 1.01  # what one part more must gain: each costs the host some dispatching that no formula has


def first_of_kind(config: ModelConfig) -> list[int]:
    """Of each layer, the first that is like it; the last is like none, as it is finished for fewer rows."""
    layers = config.layers
    return [*(layers.index(layer) for layer in layers[:-1]), len(layers) - 1]


@dataclass(frozen=True)
class LaneCosts:
    """Seconds of a step's parts by the cost model, in closed form: what a simulated step takes, without its clocks."""

    cost: CostModel
    kinds: tuple[tuple[int, int], ...]  # a layer of each kind, and how many are like it

    @classmethod
    def of(cls, cost: CostModel) -> LaneCosts:
        return cls(cost, tuple(Counter(first_of_kind(cost.config)).items()))

    def stage_seconds(self, shape: StepShape) -> dict[Stage, float]:
        """Of one part of `shape`, each stage over all layers; loads belong to no part and are left out."""
        seconds = {Stage.INPUT: self.cost.demand(Stage.INPUT, 0, shape).seconds}
        for stage in _stages(shape):
            seconds[stage] = sum(count * self.cost.demand(stage, layer, shape).seconds for layer, count in self.kinds)
        groups = -(-shape.logit_rows // LOGIT_ROWS)
        if groups:
            group = replace(shape, logit_rows=-(-shape.logit_rows // groups))
            seconds.update({stage: groups * self.cost.demand(stage, 0, group).seconds for stage in OF_LOGITS})
        return seconds

    def row_seconds(self, shape: StepShape) -> RowSeconds:
        """A step of `shape` shared out among its rows."""
        seconds = self.stage_seconds(shape)

        def share(count: int, *stages: Stage) -> float:
            return sum(seconds.get(stage, 0.0) for stage in stages) / count if count else 0.0

        return RowSeconds(
            device_row=share(shape.tokens, Stage.BEFORE_ATTENTION, Stage.AFTER_ATTENTION),
            device_pair=share(shape.prefill_pairs - shape.resumed_pairs, Stage.ATTEND_PREFILLS),
            host_row=share(shape.tokens, Stage.STORE_KV),
            host_key=share(shape.decode_context, Stage.ATTEND_DECODES),
            host_pair=share(shape.resumed_pairs, Stage.ATTEND_RESUMED),
            up_row=share(shape.hosted_tokens, Stage.UPLOAD),
            down_row=share(shape.tokens, Stage.OFFLOAD),
        )

    def layer_seconds(self, shape: StepShape) -> LayerSeconds:
        """What the rows of one part of `shape` take in a layer."""
        layers, seconds = len(self.cost.config.layers), self.stage_seconds(shape)
        attending = sum(seconds.get(stage, 0.0) for stage in ATTENDING) if shape.hosted_tokens else 0.0
        finishing = seconds[Stage.AFTER_ATTENTION]
        choosing = sum(seconds[stage] for stage in _stages(shape)) - finishing
        return LayerSeconds(attending / layers, choosing / layers, finishing / layers)

    @cached_property
    def load_seconds(self) -> float:
        """All weights that stream in a step."""
        seconds = 0.0
        for layer, load in enumerate(self.cost.layer_loads()):
            front, chunk = (self.cost.demand(Stage.LOAD, layer, StepShape(), chunk).seconds for chunk in (0, 1))
            seconds += front * load.front + chunk * self.cost.load_chunks * (load.experts is Experts.WHOLE)
        return seconds

    @cached_property
    def read_seconds(self) -> float:
        """All experts that are read from files in a step."""
        loads = enumerate(self.cost.layer_loads())
        return sum(self.cost.demand(Stage.READ, layer, StepShape()).seconds for layer, load in loads if load.from_disk)

    def step_seconds(self, parts: Sequence[StepShape]) -> float:
        """A step of these parts, but for what only a simulation finds.

        The lanes work side by side, so a step takes as long as the busiest. But a part's rows go round from device to
        host and back in every layer, so it does not take less than the slowest part's rounds either: with one part host
        and device wait for each other, with two that are equal the transfers still show. To this comes what the busiest
        lane waits for in the first round, and what follows the last layer.
        """
        of_shape = {shape: self.stage_seconds(shape) for shape in parts}
        stages = [of_shape[shape] for shape in parts]
        ends = sum(own for each in stages for stage, own in each.items() if stage in OF_LOGITS)
        lanes = {lane: sum(_of_lane(each, lane) for each in stages) for lane in Resource}
        if self.cost.hardware.device is None:
            return max(sum(lanes.values()) + ends, self.read_seconds)
        lanes[Resource.DISK] = self.read_seconds
        lanes[Resource.TO_DEVICE] += self.load_seconds
        rounds = [sum(_of_lane(each, lane) for lane in Resource) for each in stages]
        busiest = max(lanes, key=lambda lane: lanes[lane])
        first = (rounds[0] - _of_lane(stages[0], busiest)) / len(self.cost.config.layers)
        return max(lanes[busiest], *rounds) + first + ends

    def best_parts(self, shape: StepShape, most: int) -> int:
        """Into how many parts, `most` at the most, a step of `shape` is best cut; 1 where there is no device."""
        if self.cost.hardware.device is None:
            return 1
        best, best_seconds = 1, self.step_seconds([shape])
        for parts in range(2, most + 1):
            seconds = self.step_seconds([shape.cut(parts)[0]] * parts)
            if seconds * WORTH < best_seconds:
                best, best_seconds = parts, seconds
        return best

    def free_prompt_rows(self, decodes: StepShape, most: int) -> int:
        """Rows of prompts, `most` at the most, that the device computes beside `decodes` while the link brings weights
        or the host attends, whichever takes longer: with more the step takes longer, with fewer the device waits."""
        if not self.load_seconds:
            return most
        decoding = self.stage_seconds(decodes) if decodes.tokens else {}
        free = max(self.load_seconds, _of_lane(decoding, Resource.HOST))

        def is_free(rows: int) -> bool:
            prompts = StepShape(prefill_tokens=rows, prefill_pairs=rows, logit_rows=1)
            return _of_lane(self.stage_seconds(decodes + prompts), Resource.DEVICE) <= free

        if most < 1 or is_free(most):
            return most
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if is_free(middle) else (low, middle)
        return low


def _stages(shape: StepShape) -> list[Stage]:
    """Those that a part of `shape` has in each layer, beside loads."""
    stages = [Stage.BEFORE_ATTENTION, Stage.OFFLOAD, Stage.STORE_KV, Stage.AFTER_ATTENTION]
    if shape.prefill_tokens > shape.resumed_tokens:
        stages.append(Stage.ATTEND_PREFILLS)
    if shape.decode_tokens:
        stages.append(Stage.ATTEND_DECODES)
    if shape.resumed_tokens:
        stages.append(Stage.ATTEND_RESUMED)
    if shape.hosted_tokens:
        stages.append(Stage.UPLOAD)
    return stages


def _of_lane(seconds: dict[Stage, float], lane: Resource) -> float:
    """Of the stages that go on while another part is in its layers."""
    return sum(own for stage, own in seconds.items() if stage.resource is lane and stage not in OF_LOGITS)
