"""Stage 2: a finite job on a real cache, in closed form where simulating it would take too long.

In the steady state q prompts are admitted in a pass and q·(p + g - 1) rows are computed in it; the number of passes
counts ramp-up and drain. For K → ∞ and blocks of one token this is stage 1. The simulator is the reference for it:
where the cache is so short that requests are preempted often, the closed form is too hopeful by up to a third.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from moelens.cost.footprint import activation_bytes
from moelens.cost.lanes import LaneCosts
from moelens.cost.seconds import CostModel
from moelens.cost.work import model_weight_bytes
from moelens.cost.workload import StepShape, Workload
from moelens.errors import CapacityError
from moelens.models.config import ModelConfig
from moelens.pipeline.task import Resource
from moelens.plan import Plan
from moelens.planning.disk import host_weight_bytes, layer_bytes
from moelens.planning.simulate import Moment, Prediction, StepClock, check_fits, simulate

SIMULATED_ROWS = 150_000  # decode rows and prompts of a job that is simulated: about a second
SAMPLED = 512  # requests of a workload that averages are taken over


def predict(cost: CostModel, plan: Plan, workload: Workload, *, most_rows: int = SIMULATED_ROWS) -> Prediction:
    """A job by simulation, or in closed form when it has more than `most_rows` rows to walk through one by one.

    Raises CapacityError when a request is longer than the cache.
    """
    if sum(workload.output_tokens) + workload.requests <= most_rows:
        return simulate(cost, plan, workload)
    return steady(cost, plan, workload)


def steady(cost: CostModel, plan: Plan, workload: Workload) -> Prediction:
    """A job as ramp-up, a steady state and a drain, each a number of equal passes."""
    check_fits(plan, workload)
    flow = Flow.of(plan, workload)
    clock = StepClock(cost, plan)
    prediction = Prediction(sum(workload.prompt_tokens), sum(workload.output_tokens))
    for passes, shape in flow.phases():
        parts = shape.cut(_parts(cost, plan, shape)) or [shape]
        clock.times(parts)  # the pass before, whose last loads run on
        times, stages = clock.times(parts)
        outside = clock.outside_seconds(parts)
        begin = prediction.seconds
        prediction.count(passes, shape, times, stages, outside)
        length = max(times.seconds + outside, 1e-12)
        busy: dict[Resource, float] = {r: s / length for r, s in times.busy_seconds.items()}
        rows = round(passes * shape.prefill_tokens), round(passes * shape.decode_tokens)
        prediction.moments.append(Moment(begin, prediction.seconds, busy, *rows))
    prediction.peak_kv_blocks = min(plan.kv_blocks, round(flow.per_pass * flow.held_blocks))
    prediction.count_fresh(cost.fresh_seconds(0, prediction.peak_kv_blocks * plan.block_tokens))
    return prediction


def rough_seconds(cost: CostModel, plan: Plan, workload: Workload) -> float:
    """What `steady` takes with the formula of `LaneCosts` for a pass in place of clocks: to tell which of many plans
    are worth more. Infinite when a request is longer than the cache."""
    try:
        check_fits(plan, workload)
    except CapacityError:
        return math.inf
    lanes, seconds = LaneCosts.of(cost), 0.0
    for passes, shape in Flow.of(plan, workload).phases():
        parts = shape.cut(_parts(cost, plan, shape)) or [shape]
        seconds += passes * (lanes.step_seconds(parts) + cost.step_overhead_seconds(shape.tokens))
    return seconds


@dataclasses.dataclass(frozen=True)
class Flow:
    """How requests go through a plan's cache: `per_pass` (q) are admitted in each pass of the steady state.

    `held_blocks` is Σ_{j=0..g-1} ceil((p+j)/b) of a request, the blocks that it holds summed over its passes.
    """

    requests: int
    prompt: float
    output: float
    pairs: float
    context: float
    held_blocks: float
    per_pass: float

    @classmethod
    def of(cls, plan: Plan, workload: Workload) -> Flow:
        """The flow of a workload, by averages over requests spread evenly over it."""
        step = max(1, workload.requests // SAMPLED)
        sample = list(zip(workload.prompt_tokens[::step], workload.output_tokens[::step], strict=True))
        count = len(sample)
        prompt, output = sum(p for p, _ in sample) / count, sum(g for _, g in sample) / count
        held = sum(_held_blocks(p, g, plan.block_tokens) for p, g in sample) / count
        limits = [
            plan.kv_blocks / held,
            plan.step_tokens / (prompt + output - 1),
            plan.max_requests / output,
            workload.requests,
        ]
        return cls(
            requests=workload.requests,
            prompt=prompt,
            output=output,
            pairs=sum(p * (p + 1) / 2 for p, _ in sample) / count,
            context=sum((g - 1) * (p + g / 2 + 0.5) for p, g in sample) / count,
            held_blocks=held,
            per_pass=min(limits),
        )

    def phases(self) -> Sequence[tuple[float, StepShape]]:
        """Passes and the shape of one: ramp-up and drain, in which half as many decode as in the steady state."""
        q, g = self.per_pass, self.output
        passes = max(1.0, self.requests / q)
        if passes <= g:  # all are under way at once: prompts first, then decodes that end together
            full = max(1.0, self.requests * self.prompt / (q * (self.prompt + g - 1)))
            return [
                (full, self._shape(self.requests / full, 0.0)),
                (max(0.0, g - 1), self._shape(0.0, self.requests / max(1.0, g - 1))),
            ]
        edge = min(g, passes)
        return [(edge, self._shape(q, q / 2)), (passes - edge, self._shape(q, q)), (edge, self._shape(0, q / 2))]

    def _shape(self, admitted: float, decoding: float) -> StepShape:
        """A pass in which so many prompts are computed, and the decodes of a request are done so many times."""
        return StepShape(
            decode_tokens=round(decoding * (self.output - 1)),
            decode_context=round(decoding * self.context),
            prefill_tokens=round(admitted * self.prompt),
            prefill_pairs=round(admitted * self.pairs),
            logit_rows=round(admitted + decoding * (self.output - 1)),
        )


def memory_bytes(config: ModelConfig, plan: Plan, block_bytes: int | None = None) -> Mapping[str, int]:
    """Bytes of the host's memory by purpose; a block's are those of its tokens where nobody knows the ops' layout."""
    block = config.kv_bytes_per_token * plan.block_tokens if block_bytes is None else block_bytes
    layers, weights = layer_bytes(config), model_weight_bytes(config)
    resident = weights - sum(layer.front + layer.block for layer in layers)
    return {
        "weights": host_weight_bytes(layers, resident, plan.disk_layers, plan.disk_ring_layers),
        "key/value cache": plan.kv_blocks * block,
        "activations": activation_bytes(config, plan.step_tokens),
    }


def _parts(cost: CostModel, plan: Plan, shape: StepShape) -> int:
    return LaneCosts.of(cost).best_parts(shape, plan.parts) if plan.choose_parts else plan.parts


def _held_blocks(prompt: int, output: int, block_tokens: int) -> float:
    """Σ_{j=0..g-1} ceil((p+j)/b), by whole blocks: a block more every b tokens."""
    first = -(-prompt // block_tokens)
    left = first * block_tokens - prompt + 1  # values of j that the first blocks are enough for
    total, blocks, j = 0, first, 0
    while j < output:
        count = min(output - j, left if blocks == first else block_tokens)
        total, j, blocks = total + count * blocks, j + count, blocks + 1
    return float(total)
