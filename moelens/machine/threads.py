"""Lanes on threads: each resource's queue has a thread of its own, that waits for what a task comes after."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from moelens.machine.machine import Act, Done
from moelens.pipeline.task import Task

LOOK_SECONDS = 0.0002  # how often a lane that has only carried tasks looks for others, and whether the first can begin

# Runs one act; returns the bytes that it moved. `ready_seconds` is when the last thing that it waited for was done.
Run = Callable[[Act, float], int]


class Completion:
    """What becomes of a task that was submitted to a thread."""

    def __init__(self) -> None:
        self.start_seconds = 0.0
        self.end_seconds = 0.0
        self.moved_bytes = 0
        self._error: BaseException | None = None
        self._done = threading.Event()

    def finish(self, start_seconds: float, end_seconds: float, moved_bytes: int) -> None:
        self.start_seconds, self.end_seconds, self.moved_bytes = start_seconds, end_seconds, moved_bytes
        self._done.set()

    def fail(self, error: BaseException) -> None:
        self.start_seconds = self.end_seconds = time.perf_counter()
        self._error = error
        self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self) -> None:
        """Return when the task is done; raises what it raised, or what a task that it comes after raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error


@dataclass(frozen=True)
class Submission:
    """A task that waits for its turn."""

    task: Task
    act: Act
    after: tuple[Done, ...]
    completion: Done
    submitted_seconds: float = field(default_factory=time.perf_counter)


Queue = queue.SimpleQueue["Submission | None"]


class ThreadLane:
    """A queue and the thread that empties it, which ends with the lane."""

    def __init__(self, name: str, run: Run | None = None) -> None:
        """`run` does an act (None: calls it)."""
        do = run or _call
        self._queue = start_worker(name, lambda submission: _finish(submission, do))
        weakref.finalize(self, self._queue.put, None)

    def submit(self, task: Task, act: Act, after: Sequence[Done]) -> Completion:
        """Queue `act`; returns at once."""
        completion = Completion()
        self._queue.put(Submission(task, act, tuple(after), completion))
        return completion


def start_worker(name: str, finish: Callable[[Submission], None], prepare: Callable[[], None] | None = None) -> Queue:
    """A queue, and a thread that calls `prepare`, and `finish` with each of its submissions until a None comes."""
    waiting: Queue = queue.SimpleQueue()
    threading.Thread(target=_work, args=(waiting, finish, prepare), name=f"moelens {name}", daemon=True).start()
    return waiting


def _call(act: Act, ready_seconds: float) -> int:
    return act()


def _work(waiting: Queue, finish: Callable[[Submission], None], prepare: Callable[[], None] | None) -> None:
    """A thread's life. It holds no reference to its lane, so that a lane that nobody uses can end."""
    if prepare is not None:
        prepare()
    with torch.inference_mode():  # each thread has its own
        carried: deque[Submission] = deque()
        while (submission := _next(waiting, carried)) is not None:
            finish(submission)
            del submission  # and with it the tensors that its act holds


def _next(waiting: Queue, carried: deque[Submission]) -> Submission | None:
    """What comes next: the queue's head; when there is none, the first carried task if it can begin; None ends all."""
    gave_way = False
    while True:
        try:
            # Never with a timeout: CPython (3.11 at least) subtracts from it what has passed, and takes a negative
            # rest, which a thread that was held up for longer has, for "wait for ever".
            submission = waiting.get(block=not carried)
        except queue.Empty:
            if gave_way and all(earlier.is_done for earlier in carried[0].after):
                return carried.popleft()
            time.sleep(LOOK_SECONDS)
            gave_way = True
            continue
        if submission is None or not submission.task.carried:
            return submission
        carried.append(submission)


def _finish(submission: Submission, run: Run) -> None:
    completion = submission.completion
    assert isinstance(completion, Completion)
    try:
        for earlier in submission.after:
            earlier.wait()
    except BaseException as error:  # it goes to whoever waits
        completion.fail(error)
        return
    ready = max((earlier.end_seconds for earlier in submission.after), default=submission.submitted_seconds)
    start = time.perf_counter()
    try:
        moved_bytes = run(submission.act, max(ready, submission.submitted_seconds))
    except BaseException as error:
        completion.fail(error)
        return
    completion.finish(start, time.perf_counter(), moved_bytes)
