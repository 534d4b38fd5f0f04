"""At what rate threads read memory that no cache holds, and files that it does not hold."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from moelens.errors import ConfigError
from moelens.memory.arena import Arena

READ_BYTES = 256 << 20


class ReadMeter:
    """Some memory, and threads that read it, each its own stretch."""

    def __init__(self, threads: int, nbytes: int) -> None:
        numbers = Arena(nbytes, purpose="measuring memory").view(0, torch.float32, (nbytes // 4,)).numpy()
        numbers.fill(1.0)
        self._nbytes = nbytes
        self._parts = np.array_split(numbers, threads)
        self._pool = ThreadPoolExecutor(threads)  # its threads end with it
        self.seconds_per_byte()  # starts them

    def seconds_per_byte(self) -> float:
        """One read of all of it."""
        begin = time.perf_counter()
        list(self._pool.map(_read, self._parts))
        return (time.perf_counter() - begin) / self._nbytes


def read_bytes_per_second(threads: int, *, nbytes: int = READ_BYTES, rounds: int = 5) -> float:
    """The median rate of `rounds` reads of `nbytes` by `threads` threads."""
    meter = ReadMeter(threads, nbytes)
    return statistics.median(1.0 / meter.seconds_per_byte() for _ in range(rounds))


def _read(numbers: np.ndarray) -> float:
    """A maximum is bound by reading; numpy lets other threads run meanwhile."""
    return float(np.max(numbers))


def file_bytes_per_second(path: Path, threads: int = 8, nbytes: int = READ_BYTES) -> float:
    """The rate of reading the last `nbytes` of a file by `threads` threads, after the page cache was told to drop them.

    Raises ConfigError where it can't be read.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            begin, step = max(0, size - nbytes), max(1, min(nbytes, size) // (4 * threads))
            os.posix_fadvise(file, begin, 0, os.POSIX_FADV_DONTNEED)
            with ThreadPoolExecutor(threads) as pool:
                started = time.perf_counter()
                read = sum(pool.map(lambda offset: len(os.pread(file, step, offset)), range(begin, size, step)))
                return max(1, read) / (time.perf_counter() - started)
        finally:
            os.close(file)
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror}): check the disk and the permissions.") from error
