"""What the executor needs of a machine: an in-order lane per resource."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from moelens.pipeline.task import Resource, Task

Act = Callable[[], int]  # does a task's work; returns the bytes that it moved between host and device


class Done(Protocol):
    """The completion of a submitted task. Times are seconds of the machine's clock, known once it is done."""

    @property
    def start_seconds(self) -> float: ...

    @property
    def end_seconds(self) -> float: ...

    @property
    def moved_bytes(self) -> int: ...

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""

    def wait(self) -> None:
        """Return when the task is done; raises what it raised, or what a task that it comes after raised."""


class Lane(Protocol):
    """The first-in first-out queue of one resource."""

    def submit(self, task: Task, act: Act, after: Sequence[Done]) -> Done:
        """Run `act` when all earlier submissions to this lane and everything in `after` are done.

        It is not run when one of `after` failed. A carried task comes when nothing else waits, so later submissions may
        overtake it. A lane that runs tasks as they come may raise what the task raises.
        """


class Machine(Protocol):
    """A set of lanes."""

    def lane(self, resource: Resource) -> Lane:
        """The lane of a resource; two resources may share one."""
