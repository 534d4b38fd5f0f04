"""The machine that only keeps time: tasks run on clocks, no tensor exists, and memory is shared as it is in earnest."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from moelens.pipeline.task import Resource, Task

SECONDS = 1e-15  # what is left of a task that counts as nothing
LEAST_SPEED = 0.05  # of a core, however much links take
LINKS = {Resource.TO_DEVICE, Resource.TO_HOST}

Need = tuple[float, float]  # of a task: seconds where nothing else runs, and bytes of the host's memory that it moves

# Which resources have a lane of their own. Where they share one, tasks run one after another.
ONE_LANE: Mapping[Resource, int] = dict.fromkeys(Resource, 0)
FILES_BESIDE: Mapping[Resource, int] = {**ONE_LANE, Resource.DISK: 1}
LANES: Mapping[Resource, int] = {resource: index for index, resource in enumerate(Resource)}


@dataclass(frozen=True)
class StepTimes:
    """A simulated step: its length, when each task began and ended, and how long each resource was at work.

    Tasks that are carried into the next step do not count for its length; they end `carried_seconds` after it.
    `stretched_seconds` is by how much the tasks together took longer than alone, as memory was not enough for all.
    """

    seconds: float
    begins: tuple[float, ...]
    ends: tuple[float, ...]
    busy_seconds: Mapping[Resource, float]
    stretched_seconds: float
    carried_seconds: float = 0.0


@dataclass(frozen=True)
class Sharing:
    """What lanes take from each other beside memory.

    While the link moves both ways, each keeps `both_ways_share` of its speed. Where the lanes are threads of one
    processor's `cores`, `taken` says how many of them a busy lane takes: what links take, those that compute lack. A
    link's own speed stays, as it waits most of its time.
    """

    both_ways_share: float = 1.0
    cores: float = math.inf
    taken: Mapping[Resource, float] = field(default_factory=dict)

    def speed(self, resource: Resource, busy: Collection[Resource]) -> float:
        """What a lane keeps of its own speed while the `busy` ones are at work."""
        if resource in LINKS:
            return self.both_ways_share if set(busy) >= LINKS else 1.0
        if self.cores == math.inf:
            return 1.0
        copying = sum(self.taken.get(one, 0.0) for one in busy if one in LINKS)
        computing = sum(self.taken.get(one, 0.0) for one in busy if one not in LINKS)
        return min(1.0, max(LEAST_SPEED, self.cores - copying) / computing) if computing else 1.0


class SimulatedMachine:
    """In-order lanes, as a real machine has them, and one memory behind them.

    Each lane runs its tasks in the order of submission, each when all that it comes after has ended. While the tasks
    that run would together move more than `host_bytes_per_second`, those that use the host's memory all advance at the
    same share of their own speed. `sharing` is what they take from each other beside.
    """

    def __init__(
        self, lanes: Mapping[Resource, int], host_bytes_per_second: float, sharing: Sharing | None = None
    ) -> None:
        self._lanes = lanes
        self._rate = host_bytes_per_second
        self._sharing = sharing or Sharing()
        self._speeds: dict[tuple[Resource, ...], tuple[float, ...]] = {}  # by the lanes that are busy

    def run(self, tasks: Sequence[Task], need: Callable[[Task], Need]) -> StepTimes:
        """The times of one step's tasks, given in an order in which they may be submitted."""
        if len(set(self._lanes.values())) == 1:
            return _one_after_another(tasks, need)
        return _Clock(tasks, need, self._lanes, self._rate, self._speeds_of).run()

    def _speeds_of(self, busy: tuple[Resource, ...]) -> tuple[float, ...]:
        """What each lane keeps of its own speed beside the others, memory left aside."""
        speeds = self._speeds.get(busy)
        if speeds is None:
            speeds = self._speeds[busy] = tuple(self._sharing.speed(resource, busy) for resource in busy)
        return speeds


def _one_after_another(tasks: Sequence[Task], need: Callable[[Task], Need]) -> StepTimes:
    begins: list[float] = []
    ends: list[float] = []
    busy = dict.fromkeys(Resource, 0.0)
    now = 0.0
    for task in tasks:
        seconds = need(task)[0]
        begins.append(now)
        now += seconds
        ends.append(now)
        busy[task.stage.resource] += seconds
    return StepTimes(now, tuple(begins), tuple(ends), busy, 0.0)


class _Running:
    """A task under way: seconds left were it alone, and the bytes per second that it then moves."""

    __slots__ = ("bytes_per_second", "left", "resource", "task")

    def __init__(self, task: Task, seconds: float, nbytes: float) -> None:
        self.task = task
        self.resource = task.stage.resource
        self.left = seconds
        self.bytes_per_second = nbytes / seconds if seconds > 0 else 0.0


class _Clock:
    def __init__(
        self,
        tasks: Sequence[Task],
        need: Callable[[Task], Need],
        lanes: Mapping[Resource, int],
        rate: float,
        speeds_of: Callable[[tuple[Resource, ...]], tuple[float, ...]],
    ) -> None:
        self._tasks = tasks
        self._need = need
        self._rate = rate
        self._speeds_of = speeds_of
        self._queues: dict[int, list[Task]] = {lane: [] for lane in set(lanes.values())}
        for task in reversed(tasks):
            self._queues[lanes[task.stage.resource]].append(task)  # the next one is the last
        # By lane, what the next task comes after and has not ended when last looked at.
        self._awaited = {lane: list(queue[-1].after) for lane, queue in self._queues.items() if queue}
        self._running: dict[int, _Running] = {}
        self._begins = [0.0] * len(tasks)
        self._ends: list[float | None] = [None] * len(tasks)
        self._busy = dict.fromkeys(Resource, 0.0)
        self._alone = 0.0
        self._now = 0.0

    def run(self) -> StepTimes:
        self._begin_what_can()
        while self._running:
            self._advance()
            self._begin_what_can()
        ends = tuple(end for end in self._ends if end is not None)
        assert len(ends) == len(self._ends), "a task waits for one behind it: the order was not topological"
        stretched = sum(self._busy.values()) - self._alone
        seconds = max((end for task, end in zip(self._tasks, ends, strict=True) if not task.carried), default=0.0)
        return StepTimes(seconds, tuple(self._begins), ends, self._busy, stretched, self._now - seconds)

    def _begin_what_can(self) -> None:
        for lane, queue in self._queues.items():
            if lane in self._running or not queue:
                continue
            awaited = self._awaited[lane]
            while awaited and self._ends[awaited[-1]] is not None:
                awaited.pop()
            if not awaited:
                task = queue.pop()
                self._awaited[lane] = list(queue[-1].after) if queue else []
                seconds, nbytes = self._need(task)
                self._begins[task.id] = self._now
                self._alone += seconds
                self._running[lane] = _Running(task, seconds, nbytes)

    def _advance(self) -> None:
        """To the next end of a task."""
        running = list(self._running.items())
        wanted = sum([one.bytes_per_second for _, one in running])
        speeds = self._speeds_of(tuple([one.resource for _, one in running]))
        if wanted > self._rate:
            share = self._rate / wanted
            pairs = zip(running, speeds, strict=True)
            speeds = tuple([min(share, speed) if one.bytes_per_second else speed for (_, one), speed in pairs])
        elapsed = min([one.left / speed for (_, one), speed in zip(running, speeds, strict=True)])
        self._now += elapsed
        for (lane, one), speed in zip(running, speeds, strict=True):
            one.left -= elapsed * speed
            self._busy[one.resource] += elapsed
            if one.left <= SECONDS:
                self._ends[one.task.id] = self._now
                del self._running[lane]
