"""The machine with no device: one memory, one lane, and every task but reads of files runs where it is submitted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from moelens.machine.machine import Act, Done, Lane
from moelens.machine.threads import ThreadLane
from moelens.pipeline.task import Resource, Task


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


class CpuMachine:
    """All resources are the host's cores, and all kernels use all of them: tasks run one after another.

    Files are read by a thread beside them.
    """

    def __init__(self) -> None:
        self._lane = InlineLane()
        self._disk = ThreadLane("disk")

    def lane(self, resource: Resource) -> Lane:
        """The one lane there is, but for the disk's."""
        return self._disk if resource is Resource.DISK else self._lane
