"""What this machine can do at this moment: multiplications in registers and a plain read of memory, by our kernels."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from moelens import _cpu

HUGE_PAGE = 2 << 20
READ_BYTES = 512 << 20  # far more than the processor's caches
SETTLE_SECONDS = 0.4  # after another's run: OpenMP's threads spin for up to 0.2 s before they sleep
FLOPS_PER_THREAD = 2_000_000_000
FLOPS_RUNS, READ_RUNS = 12, 3
SETTLED_FLOPS_RUNS = 120  # after another's run two threads may share a core for longer: half a second in all


def make_storage(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros in memory for which huge pages were asked, as the engine's weights and cache are."""
    count = torch.Size(shape).numel()
    memory = mmap.mmap(-1, count * dtype.itemsize + 2 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    offset = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape).zero_()


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Ceiling:
    """Two rates of all threads together, measured at one moment."""

    flops_per_second: float
    bytes_per_second: float

    def least_seconds(self, flops: float, nbytes: float) -> float:
        """What so much work takes at least, computing while reading."""
        return max(flops / self.flops_per_second, nbytes / self.bytes_per_second)

    def mean(self, other: Ceiling) -> Ceiling:
        """Between two moments."""
        return Ceiling(
            (self.flops_per_second + other.flops_per_second) / 2, (self.bytes_per_second + other.bytes_per_second) / 2
        )


class CeilingMeter:
    """Measures the ceilings of the instruction set `isa` on `threads` threads; `memory` is what is read.

    `int8`: of 8-bit whole numbers in place of the instruction set's floats.
    """

    def __init__(self, isa: str, threads: int, memory: torch.Tensor | None = None, *, int8: bool = False) -> None:
        self._int8 = int8
        self._kernels = _cpu.Kernels(isa, threads)
        memory = make_storage((READ_BYTES // 4,), torch.float32) if memory is None else memory
        self._floats = memory.view(-1).view(torch.float32)

    def flops_per_second(self, runs: int) -> float:
        """Of multiplications and additions in registers: the best of several short runs, as a thread that just woke
        may share a core with another for some milliseconds."""
        return max(self._flops_per_second_once() for _ in range(runs))

    def bytes_per_second(self) -> float:
        """Of a plain read: the best of several, for the same reason."""
        return max(self._bytes_per_second_once() for _ in range(READ_RUNS))

    def _flops_per_second_once(self) -> float:
        begin = time.perf_counter()
        return self._kernels.multiply_registers(FLOPS_PER_THREAD, self._int8) / (time.perf_counter() - begin)

    def _bytes_per_second_once(self) -> float:
        return self._floats.numel() * 4 / seconds(lambda: self._kernels.read_memory(self._floats))

    def measure(self, flops_runs: int = FLOPS_RUNS) -> Ceiling:
        """Both, one after the other."""
        return Ceiling(self.flops_per_second(flops_runs), self.bytes_per_second())

    def measure_settled(self) -> Ceiling:
        """Both, once the threads of another's run sleep."""
        time.sleep(SETTLE_SECONDS)
        return self.measure(SETTLED_FLOPS_RUNS)
