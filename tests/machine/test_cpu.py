"""The lane that defers kernels gives each task its own times, looks at no result too early, and names what fails."""

from __future__ import annotations

import itertools
import time

import pytest

from moelens.cost.workload import StepShape
from moelens.errors import TaskError
from moelens.machine.cpu import MOST_DEFERRED_BYTES, CpuMachine
from moelens.pipeline.executor import Executor
from moelens.pipeline.step import step_tasks
from moelens.pipeline.task import LayerLoad, Stage, Task
from moelens.plan import Plan

PLAN = Plan(step_tokens=8, max_requests=2, kv_blocks=4, ring_layers=2)
TASKS = step_tasks([StepShape(decode_tokens=2, decode_context=5, logit_rows=2)], [LayerLoad()] * 3, PLAN)
KERNELS = {
    Stage.BEFORE_ATTENTION: 2,
    Stage.STORE_KV: 1,
    Stage.ATTEND_DECODES: 1,
    Stage.AFTER_ATTENTION: 2,
    Stage.LOGITS: 1,
}


class FakeCalls:
    """Calls by number, each of a second of a clock that nothing else moves; one may fail."""

    def __init__(self, failing: int | None = None, nbytes: int = 0) -> None:
        self.deferring = False
        self.ran = 0
        self._failing = failing
        self._bytes = nbytes
        self._waiting = 0
        self._now = time.perf_counter()
        self._times: list[tuple[float, float]] = []

    @property
    def deferred(self) -> int:
        return self._waiting + len(self._times)

    @property
    def deferred_bytes(self) -> int:
        return self._waiting * self._bytes

    def call(self) -> None:
        assert self.deferring
        self._waiting += 1

    def finish(self) -> list[tuple[float, float]]:
        while self._waiting:
            self._waiting -= 1
            if self.ran == self._failing:
                self._waiting = 0
                raise ValueError("the wheel came off")
            self.ran += 1
            self._times.append((self._now, self._now + 1.0))
            self._now += 1.0
        times, self._times = self._times, []
        return times


def test_each_task_has_the_times_of_its_own_kernels() -> None:
    calls = FakeCalls()
    ran_before: dict[Stage, int] = {}

    def act(task: Task) -> int:
        ran_before[task.stage] = calls.ran
        for _ in range(KERNELS.get(task.stage, 0)):
            calls.call()
        return task.id

    timeline = Executor(CpuMachine(calls)).run(TASKS, act, [2])
    assert [span.task for span in timeline.spans] == TASKS
    assert [span.moved_bytes for span in timeline.spans] == [task.id for task in TASKS]
    in_all = 3 * sum(KERNELS.values()) - 2
    assert ran_before[Stage.LOGITS] == 0 and ran_before[Stage.SAMPLE] == in_all, "kernels ran too early, or too late"
    kernels = [span for span in timeline.spans if span.task.stage is not Stage.SAMPLE]
    for span in kernels[1:]:
        assert span.seconds == pytest.approx(KERNELS.get(span.task.stage, 0))
    for earlier, later in itertools.pairwise(kernels[1:]):
        assert later.start_seconds == pytest.approx(earlier.end_seconds)


def test_kernels_run_before_they_use_much_memory() -> None:
    calls, waited = FakeCalls(nbytes=MOST_DEFERRED_BYTES // 5), set[int]()

    def act(task: Task) -> int:
        waited.add(calls.deferred_bytes)
        for _ in range(KERNELS.get(task.stage, 0)):
            calls.call()
        return 0

    timeline = Executor(CpuMachine(calls)).run(TASKS, act, [2])
    assert 0 < max(waited) <= MOST_DEFERRED_BYTES
    seconds = [span.seconds for span in timeline.spans if span.task.stage in KERNELS]
    assert seconds == pytest.approx([KERNELS[task.stage] for task in TASKS if task.stage in KERNELS])


def test_what_waits_runs_though_nothing_looks_at_it() -> None:
    calls = FakeCalls()
    tasks = [task for task in TASKS if task.stage is not Stage.SAMPLE]
    Executor(CpuMachine(calls)).run(tasks, lambda task: 0 if task.stage is not Stage.STORE_KV else calls.call() or 0)
    assert calls.ran == 3


@pytest.mark.parametrize(("failing", "name"), [(0, "before attention of layer 0"), (9, "attend decodes of layer 1")])
def test_a_task_whose_kernel_fails_is_named(failing: int, name: str) -> None:
    calls = FakeCalls(failing)
    sampled = False

    def act(task: Task) -> int:
        nonlocal sampled
        sampled = sampled or task.stage is Stage.SAMPLE
        for _ in range(KERNELS.get(task.stage, 0)):
            calls.call()
        return 0

    executor = Executor(CpuMachine(calls))
    with pytest.raises(TaskError, match=f"{name}, part 0 failed: the wheel came off") as e:
        executor.run(TASKS, act, [2])
    assert isinstance(e.value.__cause__, ValueError) and not sampled
    assert calls.finish() == []


def test_a_failing_task_lets_those_before_it_run() -> None:
    calls = FakeCalls()

    def act(task: Task) -> int:
        if task.layer == 1:
            raise RuntimeError("no")
        for _ in range(KERNELS.get(task.stage, 0)):
            calls.call()
        return 0

    with pytest.raises(TaskError, match="before attention of layer 1"):
        Executor(CpuMachine(calls)).run(TASKS, act, [2])
    assert calls.ran == 6 and not calls.deferring
