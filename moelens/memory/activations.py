"""Memory for the tensors that live for a part of a step: it is used again, and lies in huge pages.

The C library gives large blocks back to the system when they are freed and gets them back page by page, each page a
fault and a clearing: a tenth of a step's time, where a step writes some hundred megabytes and keeps none of them.
"""

from __future__ import annotations

import bisect
import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch

from moelens.memory.arena import Arena, align

LEAST_BYTES = 1 << 20  # what is smaller comes from the C library, which keeps it
PAGE_BYTES = 2 << 20  # a huge page


class ActivationPool:
    """Tensors whose memory returns to the pool when the last view of them dies, on whatever thread that is.

    A tensor gets a block of at most twice its size. Blocks that nobody uses take at most as much memory as those in use
    did at most.
    """

    def __init__(self) -> None:
        self._free: list[Arena] = []  # by size
        self._returned: deque[Arena] = deque()  # by finalisers, which may run anywhere
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._most_used_bytes = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor."""
        count = math.prod(shape)
        nbytes = count * dtype.itemsize
        if nbytes < LEAST_BYTES:
            return torch.empty(tuple(shape), dtype=dtype)
        with self._lock:
            self._collect()
            block = self._take(align(nbytes, PAGE_BYTES))
            self._used_bytes += block.nbytes
            self._most_used_bytes = max(self._most_used_bytes, self._used_bytes)
        lease = block.lease()
        weakref.finalize(lease, self._returned.append, block).atexit = False
        return torch.frombuffer(lease, dtype=dtype, count=count).view(tuple(shape))

    @property
    def free_bytes(self) -> int:
        """Bytes of the blocks that nobody uses."""
        with self._lock:
            self._collect()
            return self._sum_free()

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._used_bytes -= block.nbytes
            bisect.insort(self._free, block, key=_size)
        while self._sum_free() > self._most_used_bytes:
            self._free.pop(0)

    def _take(self, nbytes: int) -> Arena:
        at = bisect.bisect_left(self._free, nbytes, key=_size)
        if at < len(self._free) and self._free[at].nbytes <= 2 * nbytes:
            return self._free.pop(at)
        return Arena(nbytes, purpose="activations")

    def _sum_free(self) -> int:
        return sum(block.nbytes for block in self._free)


def _size(block: Arena) -> int:
    return block.nbytes
