"""At what rate threads read memory that no cache holds."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from moelens.memory.arena import Arena

READ_BYTES = 256 << 20


def read_bytes_per_second(threads: int, *, nbytes: int = READ_BYTES, rounds: int = 5) -> float:
    """The median rate of `rounds` reads of `nbytes` by `threads` threads, each reading its own stretch."""
    arena = Arena(nbytes, purpose="measuring memory")
    numbers = arena.view(0, torch.float32, (nbytes // 4,)).numpy()
    numbers.fill(1.0)
    parts = np.array_split(numbers, threads)
    rates: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            list(pool.map(_read, parts))
            rates.append(nbytes / (time.perf_counter() - begin))
    return statistics.median(rates[1:])


def _read(numbers: np.ndarray) -> float:
    """A dot product with itself is bound by reading; numpy lets other threads run meanwhile."""
    return float(np.max(numbers))
