"""A whole job in virtual time: the real scheduler, the real tasks, clocks for lanes, and no tensors."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from moelens.cost.division import MOST_ROWS
from moelens.cost.footprint import LOGIT_ROWS
from moelens.cost.hardware import HardwareSpec
from moelens.cost.lanes import first_of_kind
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape, Workload
from moelens.errors import CapacityError
from moelens.machine.simulated import FILES_BESIDE, LANES, LINKS, ONE_LANE, Need, Sharing, SimulatedMachine, StepTimes
from moelens.pipeline.step import StepTasks
from moelens.pipeline.task import OF_LOGITS, Experts, LayerLoad, Resource, Stage, Task
from moelens.pipeline.timeline import ExpectedStep
from moelens.pipeline.turns import Turns
from moelens.plan import Plan
from moelens.planning.divided import STAGES, ExpectedDivision
from moelens.planning.pricing import StepPricing
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.schedule.batch import Chunk, shape_of
from moelens.schedule.scheduler import Scheduler

WAITING = 4096  # requests that the scheduler is shown at a time: more would change nothing but memory
MOST_CHUNKS = 8  # of a layer that are told apart: smaller ones change little and take long
MOMENTS = 200  # points of a job's history that are kept


@dataclass(frozen=True)
class Moment:
    """A stretch of a job: when it began and ended, and per second of it what each resource was at work, and rows."""

    begin_seconds: float
    end_seconds: float
    busy: dict[Resource, float]
    prefill_tokens: int
    decode_tokens: int

    @property
    def limit(self) -> Resource:
        """The busiest resource."""
        return max(self.busy, key=lambda resource: self.busy[resource])


@dataclass
class Prediction:
    """What a job takes.

    `seconds` is all of it. Rows computed are `prefill_rows` (with what preemption has computed again) and
    `decode_rows`. `stage_seconds` and `busy_seconds` are sums over the job; `outside_seconds` what lies between tasks.
    """

    prompt_tokens: int
    output_tokens: int
    seconds: float = 0.0
    steps: int = 0
    prefill_rows: int = 0
    decode_rows: int = 0
    preemptions: int = 0
    peak_kv_blocks: int = 0
    outside_seconds: float = 0.0
    stretched_seconds: float = 0.0
    busy_seconds: dict[Resource, float] = field(default_factory=lambda: dict.fromkeys(Resource, 0.0))
    stage_seconds: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(Stage, 0.0))
    moments: list[Moment] = field(default_factory=list)

    def count(
        self, passes: float, shape: StepShape, times: StepTimes, stages: Mapping[Stage, float], outside_seconds: float
    ) -> None:
        """Add so many steps of `shape`."""
        self.seconds += passes * (times.seconds + outside_seconds)
        self.outside_seconds += passes * outside_seconds
        self.stretched_seconds += passes * times.stretched_seconds
        self.steps += round(passes)
        self.prefill_rows += round(passes * shape.prefill_tokens)
        self.decode_rows += round(passes * shape.decode_tokens)
        for resource, seconds in times.busy_seconds.items():
            self.busy_seconds[resource] += passes * seconds
        for stage, seconds in stages.items():
            self.stage_seconds[stage] += passes * seconds

    def count_fresh(self, seconds: float) -> None:
        """Add what it takes to get the memory of cache that is stored into for the first time."""
        self.seconds += seconds
        self.stage_seconds[Stage.STORE_KV] += seconds

    @property
    def tokens_per_second(self) -> float:
        """Prompt and output tokens."""
        return (self.prompt_tokens + self.output_tokens) / self.seconds

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds

    def utilisation(self, resource: Resource) -> float:
        """The share of the job in which a resource was at work."""
        return self.busy_seconds[resource] / self.seconds

    @property
    def limit(self) -> Resource:
        """The resource that was busiest."""
        return max(self.busy_seconds, key=lambda resource: self.busy_seconds[resource])


class StepClock:
    """Seconds of a step of any shape under a plan."""

    def __init__(self, cost: CostModel, plan: Plan) -> None:
        chunks = min(plan.load_chunks, MOST_CHUNKS)
        self._cost = replace(cost, load_chunks=chunks, disk_layers=plan.disk_layers)
        self._plan = replace(plan, load_chunks=chunks)
        self._has_device = cost.hardware.device is not None
        self._overlaps = self._has_device or bool(plan.disk_layers)
        lanes = LANES if self._has_device else FILES_BESIDE if self._overlaps else ONE_LANE
        self._machine = SimulatedMachine(lanes, cost.hardware.host.bytes_per_second, _sharing(cost.hardware))
        self._step_tasks = StepTasks(plan)
        self._kinds = first_of_kind(cost.config)
        self._division = ExpectedDivision(self._cost)
        self._divided = False
        loads = self._cost.layer_loads()
        streamed = [layer for layer, load in enumerate(loads) if load.streams]
        on_disk = [layer for layer, load in enumerate(loads) if load.from_disk]
        # The tasks that the step before has begun.
        self._begun = {(Stage.LOAD, layer) for layer in Turns(streamed, plan.ring_layers, streamed).firsts}
        reads = Turns(plan.disk_layers, plan.disk_ring_layers, on_disk)
        self._begun |= {(Stage.READ, layer) for layer in reads.firsts}
        self._carried: float | None = None  # seconds that it has left for them

    @property
    def overlaps(self) -> bool:
        """Whether tasks of a step run side by side."""
        return self._overlaps

    def times(self, parts: Sequence[StepShape]) -> tuple[StepTimes, dict[Stage, float]]:
        """The times of a step that follows the one asked for before, and its tasks' seconds alone by stage."""
        needs: dict[tuple[Stage, int, int, int], Need] = {}
        stages = dict.fromkeys(Stage, 0.0)
        carried = before = self._carried
        carrier = Resource.TO_DEVICE

        def need(task: Task) -> Need:
            nonlocal carried, carrier
            if carried is not None and (task.stage, task.layer) in self._begun and not task.carried:
                carrier = task.stage.resource if carried else carrier
                known, carried = (carried, 0.0), 0.0
            else:
                known = self._need(needs, task, parts)
            stages[task.stage] += known[0]
            return known

        times = self._machine.run(self._step_tasks(parts, self._step_loads(parts)), need)
        if before:  # the step before has counted it
            busy = {**times.busy_seconds, carrier: times.busy_seconds[carrier] - before}
            times = replace(times, busy_seconds=busy)
        self._carried = times.carried_seconds if self._overlaps else None
        return times, stages

    def _need(self, needs: dict[tuple[Stage, int, int, int], Need], task: Task, parts: Sequence[StepShape]) -> Need:
        of_load = task.stage is Stage.LOAD
        key = (task.stage, self._kinds[task.layer], task.part, min(task.chunk, 1) if of_load else task.chunk)
        known = needs.get(key)
        if known is None:
            shape = parts[task.part]
            if task.stage in OF_LOGITS:
                shape = replace(shape, logit_rows=min(LOGIT_ROWS, shape.logit_rows - task.chunk * LOGIT_ROWS))
            if self._divided and task.stage in STAGES:
                demand = self._division.demand(task.stage, task.layer, shape)
            else:
                demand = self._cost.demand(task.stage, task.layer, shape, task.chunk)
            known = needs[key] = (demand.seconds, demand.host_bytes)
        return known

    def _step_loads(self, parts: Sequence[StepShape]) -> tuple[LayerLoad, ...]:
        """How each layer's weights come."""
        shape = sum(parts, StepShape())
        loads = self._cost.layer_loads(shape.tokens)
        if self._plan.experts_on_host and self._has_device and shape.tokens <= MOST_ROWS:
            divided = self._division.loads(shape)
            loads = tuple(own if own.from_disk else other for own, other in zip(loads, divided, strict=True))
        self._divided = any(load.experts is Experts.DIVIDED for load in loads)
        return loads

    def expect(self, parts: Sequence[StepShape]) -> ExpectedStep:
        """A step from one `next_step` to the next."""
        (times, stages), outside = self.times(parts), self.outside_seconds(parts)
        return ExpectedStep(times.seconds + outside, outside, stages)

    def seconds(self, parts: Sequence[StepShape]) -> float:
        """All of that."""
        return self.expect(parts).seconds

    def outside_seconds(self, parts: Sequence[StepShape]) -> float:
        """What of that lies outside of its tasks."""
        return self._cost.step_overhead_seconds(sum(part.tokens for part in parts))


def _sharing(hardware: HardwareSpec) -> Sharing:
    """What the machine's lanes take from each other."""
    if hardware.device is None:
        return Sharing()
    links = dict.fromkeys(LINKS, hardware.link_cores)
    computing = {Resource.DEVICE: hardware.device.cores, Resource.HOST: hardware.host.cores}
    return Sharing(hardware.both_ways_share, hardware.cores, {**links, **computing})


def simulate(cost: CostModel, plan: Plan, workload: Workload, *, ends_known: bool = True) -> Prediction:
    """Run a job on clocks. All prompts are taken to be different.

    With `ends_known` the scheduler knows when requests will end, as it does where nothing but their limit ends them;
    else it finds out, and preempts when it has admitted too many.

    Raises CapacityError when a request is longer than the cache.
    """
    check_fits(plan, workload)
    clock = StepClock(cost, plan)
    scheduler = Scheduler(_without_sharing(plan), _Finish(), StepPricing(cost) if plan.parts > 1 else None)
    waiting = _requests(workload, ends_known)
    prediction = Prediction(sum(workload.prompt_tokens), sum(workload.output_tokens))
    history = _History()
    while True:
        while scheduler.waiting < WAITING and (request := next(waiting, None)) is not None:
            scheduler.add(request)
        groups = scheduler.next_chunks()
        if not groups:
            break
        new_blocks = max(0, plan.kv_blocks - scheduler.free_blocks - prediction.peak_kv_blocks)
        prediction.peak_kv_blocks += new_blocks
        held = prediction.peak_kv_blocks * plan.block_tokens
        parts = [shape_of(group) for group in groups]
        (times, stages), step = clock.times(parts), sum(parts, StepShape())
        begin = prediction.seconds
        prediction.count(1, step, times, stages, clock.outside_seconds(parts))
        prediction.count_fresh(cost.fresh_seconds(held - new_blocks * plan.block_tokens, held))
        history.add(begin, prediction.seconds, times.busy_seconds, step.prefill_tokens, step.decode_tokens)
        scheduler.commit_chunks(_flat(groups), _AnyToken())
    prediction.preemptions = scheduler.preemptions
    prediction.moments = history.moments()
    return prediction


_Stretch = tuple[float, float, dict[Resource, float], int, int]


class _History:
    """Steps, joined in pairs whenever they get too many: memory does not grow with the job."""

    def __init__(self) -> None:
        self._stretches: list[_Stretch] = []
        self._steps_each = 1
        self._in_last = 0

    def add(self, begin: float, end: float, busy: Mapping[Resource, float], prefill: int, decode: int) -> None:
        """Append one step."""
        one = (begin, end, dict(busy), prefill, decode)
        if self._in_last and self._in_last < self._steps_each:
            self._stretches[-1] = _joined(self._stretches[-1], one)
            self._in_last += 1
        else:
            self._stretches.append(one)
            self._in_last = 1
        if len(self._stretches) > 2 * MOMENTS:
            pairs = zip(self._stretches[::2], self._stretches[1::2], strict=False)
            odd = self._stretches[-1:] if len(self._stretches) % 2 else []
            self._stretches = [*(_joined(*pair) for pair in pairs), *odd]
            self._steps_each *= 2

    def moments(self) -> list[Moment]:
        """The history so far."""
        return [
            Moment(begin, end, {r: s / (end - begin) if end > begin else 0.0 for r, s in busy.items()}, prefill, decode)
            for begin, end, busy, prefill, decode in self._stretches
        ]


def _joined(first: _Stretch, second: _Stretch) -> _Stretch:
    busy = {resource: seconds + second[2][resource] for resource, seconds in first[2].items()}
    return first[0], second[1], busy, first[3] + second[3], first[4] + second[4]


class _AnyToken(dict[int, int]):
    """Every request's next token is 0: nobody looks at it."""

    def __missing__(self, key: int) -> int:
        return 0


class _Finish:
    """A request ends with as many tokens as it wants."""

    def __call__(self, request: Request) -> bool:
        if request.num_output_tokens < (request.params.max_tokens or 0):
            return False
        request.finish_reason = "length"
        return True


def check_fits(plan: Plan, workload: Workload) -> None:
    """Raise CapacityError when a request is longer than the cache."""
    if workload.longest_tokens > plan.kv_tokens:
        raise CapacityError(
            f"A request of {workload.longest_tokens} tokens does not fit in a key/value cache of "
            f"{plan.kv_tokens}: give it more memory, or shorten the requests."
        )


def _requests(workload: Workload, ends_known: bool) -> Iterator[Request]:
    prompts: dict[int, array[int]] = {}
    params: dict[int, SamplingParams] = {}
    for index, (prompt, output) in enumerate(zip(workload.prompt_tokens, workload.output_tokens, strict=True)):
        tokens = prompts.setdefault(prompt, array("i", bytes(4 * prompt)))
        known = params.setdefault(output, SamplingParams(max_tokens=output, ignore_eos=ends_known))
        yield Request(index, tokens, known, seed=0)


def _without_sharing(plan: Plan) -> Plan:
    return replace(plan, share_prefixes=False, retained_blocks=0)


def _flat(groups: Sequence[Sequence[Chunk]]) -> list[Chunk]:
    return [chunk for group in groups for chunk in group]
