"""Reads layers' experts from the checkpoint's files again and again, where memory does not hold them.

By pread and not by mmap, for what goes wrong: where a mapped file was cut off or its disk fails, the process dies of
SIGBUS in the middle of a kernel, while a read returns what happened, and the error can name file and tensor. And for
what is held: mapped pages belong to the page cache, whose size nobody bounds and which, read in turn, has always just
given up what is wanted next. Here the bytes go through small buffers into slots whose number is fixed. Before an
expert is read the system is told all of it (POSIX_FADV_WILLNEED), so that the disk has a long queue; after a layer
that was read whole it is told to forget it (POSIX_FADV_DONTNEED), as everything else that fits will come before it is
wanted again. Experts that were read one by one are left to the page cache: those that are chosen often stay.

Files stay open, so a file that is removed, or replaced by another of its name, is read to the end of the run as it was.
One that is written to or cut off in place is noticed by its size and time after each read.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from moelens.checkpoint.faults import damaged
from moelens.checkpoint.jobs import Job, cut_experts
from moelens.checkpoint.reading import WeightReader, affordable_threads
from moelens.checkpoint.safetensors import StoredTensor
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Architecture
from moelens.ops.interface import Ops

MOST_THREADS = 8  # that read and pack: as much as the fastest disks deliver
PROBE_BYTES = 256 << 20
_STAY = "leave the checkpoint as it is while the model runs"


class FileReader:
    """Reads the blocks of the layers of `store` that are on disk to their slots, packed for `ops`."""

    def __init__(
        self,
        store: WeightStore,
        tensors: Mapping[str, StoredTensor],
        architecture: Architecture,
        ops: Ops,
        *,
        threads: int,
    ) -> None:
        self._experts = {layer: cut_experts(architecture, store, ops, layer) for layer in sorted(store.disk_layers)}
        jobs = [job for experts in self._experts.values() for several in experts for job in several]
        largest = max((job.elements for job in jobs), default=0)
        used = {span.name: tensors[span.name] for job in jobs for span in job.spans}
        dtype = architecture.config.dtype
        self._reader = WeightReader(used, dtype, largest)
        weakref.finalize(self, self._reader.close).atexit = False
        self._states = {path: _state(file) for path, file in self._reader.files.items()}
        self._checked: set[tuple[int, int]] = set()  # layer and expert
        affordable = affordable_threads(store.nbytes, largest * dtype.itemsize)
        self._pool = ThreadPoolExecutor(min(threads, affordable, MOST_THREADS), thread_name_prefix="moelens-read")

    def read(self, layer: int) -> int:
        """All of a layer's block; returns bytes read. Raises CheckpointError."""
        nbytes = self.read_experts(layer, range(len(self._experts[layer])))
        self._advise(layer, os.POSIX_FADV_DONTNEED)
        return nbytes

    def read_experts(self, layer: int, experts: Iterable[int]) -> int:
        """Some of its experts; returns bytes read. Raises CheckpointError."""
        wanted = sorted(experts)
        work = [
            self._pool.submit(self._work, job, (layer, expert) in self._checked)
            for expert in wanted
            for job in self._experts[layer][expert]
        ]
        nbytes = _sum_of(work)
        self._check_unchanged()
        self._checked.update((layer, expert) for expert in wanted)
        return nbytes

    def bytes_per_second(self, most_bytes: int = PROBE_BYTES) -> float:
        """The rate of reading and packing experts that the page cache does not hold, into slots that nobody uses."""
        seconds, done = 0.0, 0
        for layer, experts in self._experts.items():
            if done < most_bytes:
                self._advise(layer, os.POSIX_FADV_DONTNEED)
                count = max(1, (most_bytes - done) // self._bytes_of(experts[0]))
                begin = time.perf_counter()
                done += self.read_experts(layer, range(min(count, len(experts))))
                seconds += time.perf_counter() - begin
        return done / max(1e-9, seconds)

    def _bytes_of(self, jobs: Sequence[Job]) -> int:
        return sum(self._reader.stretch(span)[2] for job in jobs for span in job.spans)

    def _work(self, job: Job, checked: bool) -> int:
        for span in job.spans:
            file, offset, nbytes = self._reader.stretch(span)
            os.posix_fadvise(file, offset, nbytes, os.POSIX_FADV_WILLNEED)
        return self._reader.work(job, checked=checked)

    def _advise(self, layer: int, advice: int) -> None:
        for job in (job for jobs in self._experts[layer] for job in jobs):
            for span in job.spans:
                os.posix_fadvise(*self._reader.stretch(span), advice)

    def _check_unchanged(self) -> None:
        for path, file in self._reader.files.items():
            if _state(file) != self._states[path]:
                raise damaged(path, "was written to while its experts were read from it", _STAY)


def _state(file: int) -> tuple[int, int]:
    """Size, and the time of the last write."""
    found = os.fstat(file)
    return found.st_size, found.st_mtime_ns


def _sum_of(work: Sequence[Future[int]]) -> int:
    """What the futures return; the first exception drops those that wait, and is raised when the others are over."""
    try:
        return sum(one.result() for one in work)
    except BaseException:
        for one in work:
            one.cancel()
        wait(work)
        raise
