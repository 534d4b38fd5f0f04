"""Which cores are near a device, as the system tells it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from moelens.machine.numa import bind_thread, near_cores


def test_cores_are_read_from_the_system(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/pci/devices/0000:3b:00.0"
    folder.mkdir(parents=True)
    (folder / "local_cpulist").write_text("0-2,8,10-11\n")
    assert near_cores("0000:3b:00.0", tmp_path) == {0, 1, 2, 8, 10, 11}
    assert near_cores("0000:00:00.0", tmp_path) == frozenset()


def test_only_the_calling_thread_is_bound_and_never_to_nothing() -> None:
    before, seen = os.sched_getaffinity(0), []

    def work() -> None:
        bind_thread(frozenset({1 << 20}))
        seen.append(os.sched_getaffinity(0))
        bind_thread(frozenset({min(before)}))
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, {min(before)}] and os.sched_getaffinity(0) == before
