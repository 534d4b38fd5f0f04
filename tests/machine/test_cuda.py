"""The lanes of a GPU, on a driver that keeps streams and events as CUDA does, in any legal order."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_threads import graphs

from moelens.errors import TaskError
from moelens.machine.cuda import CudaMachine
from moelens.pipeline.executor import Executor
from moelens.pipeline.task import Resource, Stage, Task


class FakeEvent:
    """Counts as come before it is first recorded, as CUDA's does."""

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver
        self.pending = 0
        self.tick = 0

    def query(self) -> bool:
        with self._driver.lock:
            return self.pending == 0

    def synchronize(self) -> None:
        self._driver.run_until(lambda: self.pending == 0)

    def elapsed_time(self, later: FakeEvent) -> float:
        assert self.pending == 0 and later.pending == 0, "the time of an event that has not come"
        return float(later.tick - self.tick)


class FakeStream:
    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver
        self.work: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()

    def put(self, act: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        with self._driver.lock:
            self.work.append((ready, act))

    def wait_event(self, event: FakeEvent) -> None:
        self.put(lambda: None, lambda: event.pending == 0)

    def record_event(self, event: FakeEvent) -> FakeEvent:
        with self._driver.lock:
            event.pending += 1
        self.put(lambda: self._driver.come(event))
        return event


class FakeDriver:
    """Runs what is on its streams only while somebody waits, one piece of a random stream at a time."""

    def __init__(self, seed: int) -> None:
        self.lock = threading.RLock()
        self._random = random.Random(seed)
        self._streams: list[FakeStream] = []
        self._ticks = 0
        self._current = threading.local()

    def make_stream(self) -> FakeStream:
        self._streams.append(FakeStream(self))
        return self._streams[-1]

    def make_event(self) -> FakeEvent:
        return FakeEvent(self)

    @contextlib.contextmanager
    def using(self, stream: FakeStream) -> Iterator[None]:
        self._current.stream = stream
        yield

    @property
    def current(self) -> FakeStream:
        return self._current.stream

    def come(self, event: FakeEvent) -> None:
        self._ticks += 1
        event.pending, event.tick = event.pending - 1, self._ticks

    def run_until(self, over: Callable[[], bool]) -> None:
        with self.lock:
            while not over():
                able = [stream for stream in self._streams if stream.work and stream.work[0][0]()]
                assert able, "streams wait for each other"
                self._random.choice(able).work.popleft()[1]()


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(graphs(), min_size=1, max_size=2), seed=st.integers(0, 1 << 20))
def test_any_graph_is_done_in_order_whatever_the_streams_do_first(steps: list[list[Task]], seed: int) -> None:
    driver = FakeDriver(seed)
    executor = Executor(CudaMachine(driver))
    for tasks in steps:
        done: list[int] = []

        def finish(task: Task, done=done, tasks=tasks) -> None:
            assert {id for id in task.after if not tasks[id].carried} <= set(done), "a wait is missing"
            done.append(task.id)

        def act(task: Task, finish=finish, done=done, tasks=tasks) -> int:
            if task.stage is Stage.LOAD_EXPERTS:  # it reads which experts were chosen
                assert {id for id in task.after if not tasks[id].carried} <= set(done), "routes had not come"
            if task.stage.resource in (Resource.HOST, Resource.DISK):
                finish(task)
            else:
                driver.current.put(lambda: finish(task))
            return 1

        timeline = executor.run(tasks, act)
        assert {task.id for task in tasks if not task.carried} <= set(done)
        for resource in Resource:
            lane = [id for id in done if tasks[id].stage.resource is resource and not tasks[id].carried]
            assert lane == sorted(lane)
        assert all(span.end_seconds >= span.start_seconds for span in timeline.spans)


def test_a_failure_on_a_stream_is_told_and_what_comes_after_is_not_put_there() -> None:
    driver = FakeDriver(0)
    executor, seen = Executor(CudaMachine(driver)), []

    def act(task: Task) -> int:
        seen.append(task.id)
        if task.id == 1:
            raise RuntimeError("out of memory")
        return 0

    stages = (Stage.LOAD, Stage.BEFORE_ATTENTION, Stage.OFFLOAD, Stage.STORE_KV)
    tasks = [Task(i, stage, 2, 0, (i - 1,) if i else ()) for i, stage in enumerate(stages)]
    with pytest.raises(TaskError, match=r"before attention of layer 2, part 0 .* failed: out of memory"):
        executor.run(tasks, act)
    assert seen == [0, 1]
    assert executor.run(tasks, lambda task: 0).spans
