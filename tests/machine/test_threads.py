"""Lanes on threads: in order, after what they depend on, without deadlock, and with the first error told."""

from __future__ import annotations

import gc
import random
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.errors import TaskError
from moelens.machine import threads
from moelens.machine.emulated import EmulatedMachine, ThrottledLink
from moelens.machine.threads import ThreadLane
from moelens.pipeline.executor import Executor
from moelens.pipeline.task import Resource, Stage, Task

STAGES = (Stage.LOAD, Stage.BEFORE_ATTENTION, Stage.OFFLOAD, Stage.STORE_KV)  # one of each resource


@st.composite
def graphs(draw) -> list[Task]:
    """Tasks on random lanes, each after random earlier ones; only carried ones come after carried ones."""
    tasks: list[Task] = []
    for id in range(draw(st.integers(1, 30))):
        carried = draw(st.integers(0, 5)) == 0
        earlier = [task.id for task in tasks if carried or not task.carried]
        after = draw(st.lists(st.sampled_from(earlier), max_size=4, unique=True)) if earlier else []
        tasks.append(Task(id, draw(st.sampled_from(STAGES)), 0, 0, tuple(after), carried=carried))
    return tasks


@pytest.fixture(scope="module")
def machine() -> EmulatedMachine:
    return EmulatedMachine(1e12, 1e12)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(graphs(), min_size=1, max_size=3), seed=st.integers(0, 1 << 20))
def test_any_graph_runs_to_its_end_in_order(machine: EmulatedMachine, steps: list[list[Task]], seed: int) -> None:
    executor, seen = Executor(machine), []
    timelines = []
    for number, tasks in enumerate(steps):
        pauses = random.Random(seed + number)
        done: set[int] = set()

        def act(task: Task, pauses=pauses, done=done, number=number, tasks=tasks) -> int:
            if pauses.random() < 0.2:
                time.sleep(pauses.random() * 1e-3)
            assert {id for id in task.after if not tasks[id].carried} <= done
            done.add(task.id)
            seen.append((number, task.id))
            return 1

        timelines.append(executor.run(tasks, act))
    executor.run([], lambda task: 0)  # what the last step carried may still run; the next step waits to count it
    assert len(set(seen)) == len(seen)
    for number, tasks in enumerate(steps):
        ran = [id for step, id in seen if step == number]
        assert {task.id for task in tasks if not task.carried} <= set(ran)  # carried ones may come too late
        for stage in STAGES:
            for carried in (False, True):
                lane = [id for id in ran if tasks[id].stage is stage and tasks[id].carried == carried]
                assert lane == sorted(lane), "a lane is first-in first-out"
    for number, timeline in enumerate(timelines):
        before = [task for task in steps[number - 1] if task.carried] if number else []
        assert [span.task for span in timeline.spans] == before + [task for task in steps[number] if not task.carried]
        for span in timeline.spans:
            assert span.end_seconds >= span.start_seconds
            ran = (number - span.task.carried, span.task.id) in seen
            assert span.moved_bytes == ran


@settings(max_examples=100, deadline=None)
@given(tasks=graphs(), data=st.data())
def test_the_first_error_ends_the_step_and_nothing_that_depends_on_it_runs(
    machine: EmulatedMachine, tasks: list[Task], data: st.DataObject
) -> None:
    failing = data.draw(st.sampled_from([task.id for task in tasks if not task.carried] or [tasks[0].id]))
    running, seen = threading.Lock(), []

    def act(task: Task) -> int:
        with running:
            seen.append(task.id)
        if task.id == failing:
            raise ValueError("no")
        return 0

    executor = Executor(machine)
    if tasks[failing].carried:
        return  # only carried tasks: nobody waits
    with pytest.raises(TaskError, match=r"of layer 0, part 0 \(0 rows\) failed: no"):
        executor.run(tasks, act)
    count = len(seen)
    assert not {task.id for task in tasks if failing in task.after} & set(seen)
    executor.run([], act)
    assert len(seen) == count, "everything was over when the exception came"
    assert executor.run([tasks[0]], lambda task: 0), "the lanes go on"


def test_an_interrupt_waits_for_what_runs_and_skips_the_rest(machine: EmulatedMachine) -> None:
    tasks = [Task(i, Stage.STORE_KV, 0, 0, ()) for i in range(20)]
    first, seen = threading.Event(), []

    class Interrupted:
        def lane(self, resource: Resource) -> ThreadLane:
            if first.wait(0) or len(submitted) == len(tasks) - 1:
                raise KeyboardInterrupt
            submitted.append(resource)
            return machine.lane(resource)

    submitted: list[Resource] = []

    def act(task: Task) -> int:
        time.sleep(0.001)
        seen.append(task.id)
        first.set()
        return 0

    with pytest.raises(KeyboardInterrupt):
        Executor(Interrupted()).run(tasks, act)
    count = len(seen)
    time.sleep(0.01)
    assert len(seen) == count < len(tasks)


def test_lanes_run_under_inference_mode_and_end_with_their_machine() -> None:
    before = {thread.name for thread in threading.enumerate()}
    lane = ThreadLane("of a test")
    modes: list[bool] = []

    def act() -> int:
        modes.append(torch.is_inference_mode_enabled())
        return 0

    lane.submit(Task(0, Stage.STORE_KV, 0, 0, ()), act, []).wait()
    assert modes == [True]
    (thread,) = (t for t in threading.enumerate() if t.name == "moelens of a test")
    del lane
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive() and "moelens of a test" not in before


def test_a_link_takes_its_time_and_makes_up_for_late_awakenings() -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds + 0.25  # a sleep that is always too long

    link = ThrottledLink(100.0, lambda: now[0], sleep)
    for _ in range(8):  # of 1 s each, all ready at 0
        link.run(lambda: 100, 0.0)
    assert now[0] == 8.25, "only the last awakening counts"
    now[0] = 20.0
    link.run(lambda: 50, 20.0)
    assert slept[-1] == 0.5, "an idle link does not make up for what it did not do"


def test_a_lane_that_is_held_up_while_it_looks_still_does_what_is_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LOOK_SECONDS", 1e-6)  # so short that being held up for longer is common
    lane = ThreadLane("of a test")
    for _ in range(5000):
        carried = lane.submit(Task(0, Stage.LOAD, 0, 0, (), carried=True), lambda: 1, [])
        end = time.monotonic() + 30
        while not carried.is_done:
            assert time.monotonic() < end, "the lane sleeps for ever"
            time.sleep(0)


def test_what_is_carried_gives_way_and_is_dropped_when_the_next_step_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = EmulatedMachine(1e12, 1e12)
    executor, seen = Executor(machine), []
    gate = threading.Event()

    def act(task: Task) -> int:
        if task.id == 1 and not task.carried:
            gate.wait(10)
        seen.append(task.id)
        return 1

    def task(id: int, stage: Stage, after: tuple[int, ...] = (), carried: bool = False) -> Task:
        return Task(id, stage, 0, 0, after, carried=carried)

    # Task 0 is carried and could begin; 1 and 2 are behind it in its lane, and go first.
    with monkeypatch.context() as patch:
        patch.setattr(threads, "LOOK_SECONDS", 0.05)  # longer than this thread is held up between two submissions
        threading.Timer(0.02, gate.set).start()
        executor.run([task(0, Stage.LOAD, carried=True), task(1, Stage.LOAD), task(2, Stage.UPLOAD)], act)
        assert seen[:2] == [1, 2]
        executor.run([], act)  # which waits for task 0, or drops it
    seen.clear()
    # Here nothing carried can begin before the step is over, and the next one begins at once.
    tasks = [task(0, Stage.STORE_KV), *(task(i, Stage.LOAD, (0,), carried=True) for i in range(1, 2000))]
    executor.run(tasks, act)
    timeline = executor.run([task(0, Stage.STORE_KV)], act)
    assert len(seen) < 2000 and len(timeline.spans) == 2000
    assert sum(span.moved_bytes for span in timeline.spans) == len(seen) - 1
