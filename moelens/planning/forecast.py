"""What a run will take: predicted before its first step, and put right by what each step is measured to take."""

from __future__ import annotations

from collections.abc import Mapping

from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.devices import EmulatedDevice
from moelens.errors import CapacityError
from moelens.pipeline.report import StepReport
from moelens.pipeline.task import Stage
from moelens.plan import Plan
from moelens.planning.drift import Drift, blend
from moelens.planning.predict import predict
from moelens.planning.simulate import Prediction, StepClock

SIMULATED_ROWS = 10_000  # of a job: tens of milliseconds before it begins
STEPS = 3  # from which on a machine that nobody measured is known well enough


class Forecast:
    """The seconds of a job, stage by stage.

    Each stage has a scale, what it was measured to take in the last steps over what was expected, and the rest of the
    job is multiplied by it. So a neighbour that takes memory bandwidth shows within a few steps. Requests that end
    before their limit shorten the rest by as much as those that have ended already did.
    """

    def __init__(self, cost: CostModel, plan: Plan, workload: Workload, *, is_measured: bool) -> None:
        self.prediction: Prediction | None = None
        self._clock = StepClock(cost, plan)
        self._is_measured = is_measured
        self._tokens = workload.total_tokens
        self._rows = workload.total_tokens - workload.requests
        self._output_tokens = sum(workload.output_tokens)
        self._done: dict[Stage, float] = dict.fromkeys(Stage, 0.0)  # expected of the steps so far
        self._drift = Drift()
        self._outside = self._whole = (0.0, 0.0)
        self._done_seconds = 0.0
        self._done_rows = 0
        self._steps = 0
        self._seconds = 0.0
        self._asked = self._given = 0  # output tokens of requests that have ended
        try:
            self.prediction = predict(cost, plan, workload, most_rows=SIMULATED_ROWS)
        except CapacityError:
            return  # requests that end early may fit all the same: nothing is foretold

    @property
    def scales(self) -> Mapping[Stage, float]:
        """By stage, what it takes over what was expected, lately."""
        return self._drift.scales

    def observe(self, report: StepReport) -> None:
        """Take in a step."""
        expected = report.expected or self._clock.expect(report.parts)
        self._done_seconds += expected.seconds
        self._whole = blend(self._whole, (expected.seconds, report.seconds))
        for stage, own in expected.stage_seconds.items():
            self._done[stage] += own
        self._drift.observe(expected.stage_seconds, report.stage_seconds)
        outside = max(0.0, report.seconds - sum(report.stage_seconds.values()))
        self._outside = blend(self._outside, (expected.outside_seconds, outside))
        self._steps += 1
        self._seconds += report.seconds
        self._done_rows += report.prompt_tokens + report.decode_rows
        for request in report.finished:
            self._asked += request.params.max_tokens or request.num_output_tokens
            self._given += request.num_output_tokens

    @property
    def remaining_seconds(self) -> float | None:
        """Of the job; None where too little is known yet."""
        if self.prediction is None or not (self._is_measured or self._steps >= STEPS):
            return None
        left = max(0, self._rows - self._done_rows)
        if self._clock.overlaps:  # lanes run side by side: a step is not the sum of its stages
            rest = max(0.0, self.prediction.seconds - self._done_seconds) * _ratio(self._whole)
            return rest * self._shortened(left)
        scales = self.scales
        rest = sum(
            max(0.0, seconds - self._done[stage]) * scales.get(stage, 1.0)
            for stage, seconds in self.prediction.stage_seconds.items()
        )
        rest += self.prediction.outside_seconds * left / max(1, self._rows) * _ratio(self._outside)
        return rest * self._shortened(left)

    @property
    def tokens_per_second(self) -> float | None:
        """Prompt and output tokens of the whole job over all of its seconds; None where too little is known yet."""
        rest = self.remaining_seconds
        if rest is None:
            return None
        left = max(0, self._rows - self._done_rows)
        unused = left * (1.0 - self._shortened(left))
        return (self._tokens - unused) / max(self._seconds + rest, 1e-9)

    def text(self) -> str:
        """For the progress bar; empty where too little is known yet."""
        speed, rest = self.tokens_per_second, self.remaining_seconds
        if speed is None or rest is None:
            return ""
        minutes, seconds = divmod(round(rest), 60)
        return f"predicted: {speed:.2f} toks/s, {minutes:02d}:{seconds:02d} left"

    def _shortened(self, left: int) -> float:
        """The share of the remaining rows that will be needed, by how early requests have ended so far."""
        if not self._asked or not left:
            return 1.0
        unused = self._output_tokens * (1.0 - self._given / self._asked)
        return max(0.0, min(1.0, 1.0 - unused / (left + self._asked - self._given)))


def unmeasured(threads: int, *, has_device: bool, link_bytes_per_second: float | None = None) -> HardwareSpec:
    """A machine of which nobody knows anything but the number of threads, and perhaps the link's speed.

    Its figures are those of common cores, of a small GPU and of its link, in round numbers: they give the stages'
    proportions, which measured steps put right.
    """
    host = _unmeasured_cores("processor", threads)
    if not has_device:
        return HardwareSpec("unmeasured", host)
    device = Processor("device", flops_per_second=1e13, bytes_per_second=5e11, memory_bytes=1e10, task_seconds=1e-5)
    link = link_bytes_per_second or 1e10
    return HardwareSpec("unmeasured", host, device, to_device_bytes_per_second=link, to_host_bytes_per_second=link)


def unmeasured_emulation(threads: int, device: EmulatedDevice) -> HardwareSpec:
    """The same of a machine whose device is threads of its own."""
    host, cores = _unmeasured_cores("processor", threads), _unmeasured_cores("device", device.threads)
    link = device.link_bytes_per_second
    return HardwareSpec("unmeasured", host, cores, link, link)


def _unmeasured_cores(name: str, threads: int) -> Processor:
    return Processor(
        name,
        flops_per_second=1e11 * threads,
        bytes_per_second=1e10 * min(4, threads),  # a few threads take all that memory gives
        memory_bytes=1e10,
        task_seconds=1e-5,
    )


def _ratio(pair: tuple[float, float]) -> float:
    return pair[1] / pair[0] if pair[0] > 0 and pair[1] > 0 else 1.0
