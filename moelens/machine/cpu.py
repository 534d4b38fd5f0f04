"""The machine with no device: one memory, one lane, and every task runs where it is submitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moelens.machine.machine import Done
from moelens.pipeline.task import Resource


class Finished:
    """The completion of a task that has run already."""

    def wait(self) -> None:
        """Nothing to wait for."""


class InlineLane:
    """Runs a task as it is submitted: whatever it has to come after has run before."""

    def submit(self, act: Callable[[], None], after: Sequence[Done]) -> Done:
        """Run `act` now; raises what it raises."""
        act()
        return Finished()


class CpuMachine:
    """All resources are the host's cores, and all kernels use all of them: tasks run one after another."""

    def __init__(self) -> None:
        self._lane = InlineLane()

    def lane(self, resource: Resource) -> InlineLane:
        """The one lane there is."""
        return self._lane
