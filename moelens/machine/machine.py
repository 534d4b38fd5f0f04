"""What the executor needs of a machine: an in-order lane per resource."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from moelens.pipeline.task import Resource


class Done(Protocol):
    """The completion of a submitted task."""

    def wait(self) -> None:
        """Return when the task is done; raises what it raised."""


class Lane(Protocol):
    """The first-in first-out queue of one resource."""

    def submit(self, act: Callable[[], None], after: Sequence[Done]) -> Done:
        """Run `act` when all earlier submissions to this lane and everything in `after` are done."""


class Machine(Protocol):
    """A set of lanes."""

    def lane(self, resource: Resource) -> Lane:
        """The lane of a resource; two resources may share one."""
