"""Memory for the tensors that live for a part of a step: it is used again, and lies in huge pages.

The C library gives large blocks back to the system when they are freed and gets them back page by page, each page a
fault and a clearing: a tenth of a step's time, where a step writes some hundred megabytes and keeps none of them.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch

from moelens.errors import CapacityError
from moelens.memory.arena import Arena, align

LEAST_BYTES = 4 << 20  # what is smaller comes from the C library, which keeps it and is quicker
PAGE_BYTES = 2 << 20  # a huge page


class ActivationPool:
    """Tensors whose memory returns to the pool when the last view of them dies, on whatever thread that is.

    A tensor gets a block of at most twice its size. Blocks that nobody uses take at most as much memory as those in use
    did at most; those that were not used for longest are given back first. With `limit_bytes`, the tensors that live at
    once take no more than that, as on a device with a memory of its own.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._free: list[Arena] = []  # what was returned last comes last
        # By the id of a reference to a tensor's memory: that, its block and its bytes. It is lighter than a finaliser.
        self._lent: dict[int, tuple[weakref.ref[memoryview], Arena | None, int]] = {}
        self._returned: deque[weakref.ref[memoryview]] = deque()  # as tensors die, on whatever thread
        self._lock = threading.Lock()
        self._live_bytes = 0  # of tensors
        self._used_bytes = 0  # of the blocks that they lie in
        self._most_used_bytes = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor; raises CapacityError where it would exceed the limit."""
        count = math.prod(shape)
        nbytes = count * dtype.itemsize
        small = nbytes < LEAST_BYTES
        if count == 0 or (small and self._limit_bytes is None):
            return torch.empty(tuple(shape), dtype=dtype)
        with self._lock:
            self._collect()
            self._check_limit(nbytes)
            block = None if small else self._take(align(nbytes, PAGE_BYTES))
            self._live_bytes += nbytes
            self._used_bytes += 0 if block is None else block.nbytes
            self._most_used_bytes = max(self._most_used_bytes, self._used_bytes)
        memory = memoryview(bytearray(nbytes)) if block is None else block.lease()
        reference = weakref.ref(memory, self._returned.append)
        self._lent[id(reference)] = reference, block, nbytes
        return torch.frombuffer(memory, dtype=dtype, count=count).view(tuple(shape))

    @property
    def free_bytes(self) -> int:
        """Bytes of the blocks that nobody uses."""
        with self._lock:
            self._collect()
            return self._sum_free()

    def _check_limit(self, nbytes: int) -> None:
        if self._limit_bytes is not None and self._live_bytes + nbytes > self._limit_bytes:
            raise CapacityError(
                f"The device has {self._limit_bytes} bytes for what is computed on it, but {nbytes} more make it "
                f"{self._live_bytes + nbytes}. Lower max_num_batched_tokens."
            )

    def _collect(self) -> None:
        while self._returned:
            _, block, nbytes = self._lent.pop(id(self._returned.popleft()))
            self._live_bytes -= nbytes
            if block is not None:
                self._used_bytes -= block.nbytes
                self._free.append(block)
        while self._sum_free() > self._most_used_bytes:
            self._free.pop(0)

    def _take(self, nbytes: int) -> Arena:
        fitting = [block for block in self._free if nbytes <= block.nbytes <= 2 * nbytes]
        if not fitting:
            return Arena(nbytes, purpose="activations")
        block = min(fitting, key=lambda one: one.nbytes)
        self._free.remove(block)
        return block

    def _sum_free(self) -> int:
        return sum(block.nbytes for block in self._free)
