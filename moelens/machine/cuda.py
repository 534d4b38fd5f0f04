"""A machine with a GPU: streams as lanes, and a thread for the host. No part of this has run on a GPU yet.

A stream's lane has a thread that puts work on it. It waits, on the stream, for what other streams do, and itself only
for what the host does: nothing behind such a task could begin before it. A task of the host begins when the events of
its inputs have come; it waits for them on its own thread, so no stream's thread is held up, and what comes after it is
put on its stream when it is done.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, cast

import torch

from moelens.machine.machine import Act, Done
from moelens.machine.numa import bind_thread
from moelens.machine.threads import Submission, ThreadLane, start_worker
from moelens.pipeline.task import Resource, Stage, Task

# Tasks on streams whose act looks at what it comes after: which experts the router has chosen. Nothing behind them
# could begin before that is known.
LOOKS_AT_INPUTS = frozenset({Stage.LOAD_EXPERTS})


class Event(Protocol):
    """A point in a stream's work, as torch.cuda.Event has it."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: Event, /) -> float: ...


class Stream(Protocol):
    """As torch.cuda.Stream has it."""

    def wait_event(self, event: Event, /) -> None: ...

    def record_event(self, event: Event, /) -> Event: ...


class Driver(Protocol):
    """What the lanes need of CUDA; tests have one of their own."""

    def make_stream(self) -> Stream: ...

    def make_event(self) -> Event: ...

    def using(self, stream: Stream) -> AbstractContextManager[object]:
        """Within it, work goes to `stream`."""


class TorchDriver:
    """CUDA through torch, on the GPU of this index."""

    def __init__(self, index: int) -> None:
        self._device = torch.device("cuda", index)

    def make_stream(self) -> Stream:
        return cast(Stream, torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]

    def make_event(self) -> Event:
        return cast(Event, torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]

    def using(self, stream: Stream) -> AbstractContextManager[object]:
        return torch.cuda.stream(cast(torch.cuda.Stream, stream))


class Clock:
    """Turns events of the device into seconds of `time.perf_counter`."""

    def __init__(self, driver: Driver, stream: Stream) -> None:
        self._origin = stream.record_event(driver.make_event())
        self._origin.synchronize()
        self._origin_seconds = time.perf_counter()

    def seconds(self, event: Event) -> float:
        """When an event that has come came; events count milliseconds."""
        return self._origin_seconds + self._origin.elapsed_time(event) * 1e-3


class StreamCompletion:
    """A task that is put on a stream, later done by it."""

    def __init__(self, clock: Clock, start: Event, end: Event) -> None:
        self.moved_bytes = 0
        self._clock = clock
        self.start = start
        self.end = end
        self._error: BaseException | None = None
        self._issued = threading.Event()

    def issue(self, moved_bytes: int) -> None:
        """All of it is on the stream, its end recorded."""
        self.moved_bytes = moved_bytes
        self._issued.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._issued.set()

    def wait_until_issued(self) -> None:
        """Return when its end can be waited for; raises what its act raised."""
        self._issued.wait()
        if self._error is not None:
            raise self._error

    @property
    def is_done(self) -> bool:
        return self._issued.is_set() and (self._error is not None or self.end.query())

    @property
    def start_seconds(self) -> float:
        return self._clock.seconds(self.start)

    @property
    def end_seconds(self) -> float:
        return self._clock.seconds(self.end)

    def wait(self) -> None:
        """Return when the stream has done it; raises what it raised, or what a task that it comes after raised."""
        self.wait_until_issued()
        self.end.synchronize()


class StreamLane:
    """A stream, and the thread that puts work on it in the order of submission."""

    def __init__(self, name: str, driver: Driver, clock: Clock, stream: Stream, cores: frozenset[int]) -> None:
        self._driver = driver
        self._clock = clock
        issue, prepare = partial(_issue, driver=driver, stream=stream), partial(bind_thread, cores)
        self._queue = start_worker(name, issue, prepare)
        weakref.finalize(self, self._queue.put, None)

    def submit(self, task: Task, act: Act, after: Sequence[Done]) -> StreamCompletion:
        """Queue `act`, which puts work on the current stream; returns at once."""
        completion = StreamCompletion(self._clock, self._driver.make_event(), self._driver.make_event())
        self._queue.put(Submission(task, act, tuple(after), completion))
        return completion


class CudaMachine:
    """A stream for the device and one for each direction of the link; the host and reads of files have a thread each.

    The threads of copies are bound to `cores`, those near the GPU (empty: to none).
    """

    def __init__(self, driver: Driver, cores: frozenset[int] = frozenset()) -> None:
        self._threads = {resource: ThreadLane(resource.value) for resource in (Resource.HOST, Resource.DISK)}
        streams = {resource: driver.make_stream() for resource in Resource if resource not in self._threads}
        clock = Clock(driver, streams[Resource.DEVICE])
        near = {Resource.TO_DEVICE: cores, Resource.TO_HOST: cores}
        self._lanes = {
            resource: StreamLane(resource.value, driver, clock, stream, near.get(resource, frozenset()))
            for resource, stream in streams.items()
        }

    def lane(self, resource: Resource) -> ThreadLane | StreamLane:
        """The resource's own lane."""
        return self._threads.get(resource) or self._lanes[resource]


def _issue(submission: Submission, driver: Driver, stream: Stream) -> None:
    completion = submission.completion
    assert isinstance(completion, StreamCompletion)
    try:
        for earlier in submission.after:
            if isinstance(earlier, StreamCompletion):
                earlier.wait_until_issued()
                stream.wait_event(earlier.end)
                if submission.task.stage in LOOKS_AT_INPUTS:
                    earlier.wait()
            else:
                earlier.wait()
        with driver.using(stream):
            stream.record_event(completion.start)
            moved_bytes = submission.act()
            stream.record_event(completion.end)
    except BaseException as error:  # it goes to whoever waits
        completion.fail(error)
        return
    completion.issue(moved_bytes)
