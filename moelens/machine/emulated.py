"""A machine whose device is made of threads: all that is asynchronous is real, but for the processor itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from moelens.machine.machine import Act
from moelens.machine.threads import ThreadLane
from moelens.pipeline.task import Resource


class ThrottledLink:
    """Lets each transfer take as long as a link of this bandwidth would, by waiting after the real copy.

    The link's clock goes on from where the transfer before has left it, not from when a thread woke up: so what a sleep
    takes too long is made up for by the next one. `bytes_per_second` may change at any time, as of the next transfer.
    """

    def __init__(
        self,
        bytes_per_second: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._free_seconds = 0.0

    def run(self, act: Act, ready_seconds: float) -> int:
        """Do `act`, which could begin at `ready_seconds`; returns when the link would have moved its bytes."""
        moved_bytes = act()
        self._free_seconds = max(ready_seconds, self._free_seconds) + moved_bytes / self.bytes_per_second
        left = self._free_seconds - self._clock()
        if left > 0:
            self._sleep(left)
        return moved_bytes


class EmulatedMachine:
    """A thread for the device, one for the host, one for files, and one for each direction of the link."""

    def __init__(self, to_device_bytes_per_second: float, to_host_bytes_per_second: float) -> None:
        self.links = {
            Resource.TO_DEVICE: ThrottledLink(to_device_bytes_per_second),
            Resource.TO_HOST: ThrottledLink(to_host_bytes_per_second),
        }
        self._lanes = {
            Resource.DEVICE: ThreadLane("device"),
            Resource.HOST: ThreadLane("host"),
            Resource.DISK: ThreadLane("disk"),
            **{way: ThreadLane(way.value, link.run) for way, link in self.links.items()},
        }

    def lane(self, resource: Resource) -> ThreadLane:
        """The resource's own lane."""
        return self._lanes[resource]
