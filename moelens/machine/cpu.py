"""The machine with no device: one memory, one lane, and every task but reads of files runs where it is submitted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from moelens.errors import TaskError
from moelens.machine.machine import Act, Done, Lane
from moelens.machine.threads import ThreadLane
from moelens.pipeline.task import Resource, Stage, Task

# Tasks that look at what kernels have made, and not only by other kernels.
LOOK_AT_RESULTS = frozenset({Stage.SAMPLE})
MOST_DEFERRED_BYTES = 64 << 20  # about a step of 128 rows; kernels of more take so long that Python's time is little


class Calls(Protocol):
    """The calls of kernels; while they are deferred, those of this thread run beside it, one after another.

    `moelens.ops.native.NativeOps.calls` are some.
    """

    deferring: bool

    @property
    def deferred(self) -> int:
        """Calls that were deferred since `finish`."""

    @property
    def deferred_bytes(self) -> int:
        """Bytes of activations that they use, counted by each."""

    def finish(self) -> Sequence[tuple[float, float]]:
        """Wait for them; returns when each of `deferred` began and ended, in seconds of time.perf_counter.

        Raises what one of them raises; those after it are dropped, and another `finish` returns the times of those
        before.
        """


class Finished(NamedTuple):
    """The completion of a task that has run already."""

    start_seconds: float
    end_seconds: float
    moved_bytes: int

    @property
    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        """Nothing to wait for."""


class InlineLane:
    """Runs a task as it is submitted, when what it has to come after on other lanes is done."""

    def submit(self, task: Task, act: Act, after: Sequence[Done]) -> Done:
        """Run `act` now; raises what it raises, or what a task that it comes after raised."""
        for earlier in after:
            earlier.wait()
        start = time.perf_counter()
        moved_bytes = act()
        return Finished(start, time.perf_counter(), moved_bytes)


class Deferred:
    """The completion of a task whose calls of kernels were deferred with those of others."""

    __slots__ = ("_lane", "end_seconds", "first_call", "last_call", "moved_bytes", "start_seconds", "task")

    def __init__(self, lane: DeferringLane, task: Task, first_call: int, last_call: int, moved_bytes: int) -> None:
        """Its calls are [first_call, last_call) of those that were deferred."""
        self.start_seconds = self.end_seconds = time.perf_counter()
        self.moved_bytes = moved_bytes
        self.task = task
        self.first_call = first_call
        self.last_call = last_call
        self._lane = lane

    def finish(self, times: Sequence[tuple[float, float]]) -> None:
        """`times` are of all calls. A task without any is over when the one before is."""
        if self.last_call > 0:
            self.end_seconds = times[self.last_call - 1][1]
            has_calls = self.first_call < self.last_call
            self.start_seconds = times[self.first_call][0] if has_calls else self.end_seconds

    @property
    def is_done(self) -> bool:
        return not self._lane.is_waiting(self)

    def wait(self) -> None:
        """Wait for all of them; raises TaskError where a kernel fails."""
        self._lane.finish()


class DeferringLane:
    """Has a step's kernels run while Python goes on, until something looks at what they make, or they use much memory.

    What Python does for a task takes several times as long as it might, for kernels fill the caches with weights.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._waiting: list[Deferred] = []

    def submit(self, task: Task, act: Act, after: Sequence[Done]) -> Done:
        """Run `act` now and defer its kernels. All keep their order, so none of `after` is waited for."""
        if task.stage in LOOK_AT_RESULTS:
            self.finish()
            start = time.perf_counter()
            moved_bytes = act()
            return Finished(start, time.perf_counter(), moved_bytes)
        calls = self._calls
        first = calls.deferred
        calls.deferring = True
        try:
            moved_bytes = act()
        finally:
            calls.deferring = False
        done = Deferred(self, task, first, calls.deferred, moved_bytes)
        self._waiting.append(done)
        if calls.deferred_bytes > MOST_DEFERRED_BYTES:
            self.finish()
        return done

    def is_waiting(self, done: Deferred) -> bool:
        """Whether it is one of the tasks that wait."""
        return done in self._waiting

    def finish(self) -> None:
        """Wait for all kernels; raises TaskError, which names the task, where a kernel fails."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        try:
            times = self._calls.finish()
        except Exception as error:
            succeeded = len(self._calls.finish())
            task = next(one.task for one in waiting if one.last_call > succeeded)
            raise TaskError(f"{task.stage.value} of layer {task.layer}, part {task.part} failed: {error}") from error
        for done in waiting:
            done.finish(times)


class CpuMachine:
    """All resources are the host's cores, and all kernels use all of them: tasks run one after another.

    Files are read by a thread beside them. With `calls`, a step's kernels are deferred, where none are read.
    """

    def __init__(self, calls: Calls | None = None) -> None:
        self._lane = InlineLane() if calls is None else DeferringLane(calls)
        self._disk = ThreadLane("disk")

    def lane(self, resource: Resource) -> Lane:
        """The one lane there is, but for the disk's."""
        return self._disk if resource is Resource.DISK else self._lane
