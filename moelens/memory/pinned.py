"""Host memory that a GPU copies from and to at full speed: registered as it lies, or else through a small ring.

Never torch's own pinned memory for weights, which takes the next power of two of what is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from moelens.memory.arena import Arena

logger = logging.getLogger(__name__)

PIECE_BYTES = 1 << 30  # registered at a time: a refusal is known early, and an interrupt is not held up for long
PAGE_BYTES = 1 << 12


class Registrar(Protocol):
    """Of memory that the GPU's driver may copy from directly; tests have one of their own."""

    def register(self, address: int, nbytes: int) -> int:
        """Pin bytes; returns 0 or the driver's error code."""

    def unregister(self, address: int) -> None:
        """Undo what `register` has done at this address."""


class CudaRegistrar:
    """cudaHostRegister, through torch."""

    def register(self, address: int, nbytes: int) -> int:
        return int(torch.cuda.cudart().cudaHostRegister(address, nbytes, 0))  # type: ignore[no-untyped-call]

    def unregister(self, address: int) -> None:
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


def pin(memory: torch.Tensor, registrar: Registrar, piece_bytes: int = PIECE_BYTES) -> list[int]:
    """Pin all bytes of `memory`, uint8 on the host, page by page; returns where the pieces begin.

    When the system refuses one, those before are released and the list is empty: what is pinned in part is copied no
    faster than its slowest piece, and takes memory from everyone.
    """
    begin = memory.data_ptr() // PAGE_BYTES * PAGE_BYTES
    end = -(-(memory.data_ptr() + memory.nbytes) // PAGE_BYTES) * PAGE_BYTES
    done: list[int] = []
    for address in range(begin, end, piece_bytes):
        code = registrar.register(address, min(piece_bytes, end - address))
        if code:
            unpin(done, registrar)
            logger.warning(
                "the system pins no more than %.1f of %.1f GB (CUDA error %d): raise its limit (ulimit -l) for faster "
                "copies to the GPU",
                (address - begin) / 1e9,
                memory.nbytes / 1e9,
                code,
            )
            return []
        done.append(address)
    return done


def unpin(pieces: Sequence[int], registrar: Registrar) -> None:
    """Undo `pin`."""
    for address in pieces:
        registrar.unregister(address)


class CopyDone(Protocol):
    """A copy that was started."""

    def synchronize(self) -> None: ...


class StagingRing:
    """A few pinned buffers, for memory that could not be pinned itself: the next one is filled while others are copied.

    `start_copy` begins to copy a host tensor to the device and returns its end. Where not even the buffers can be
    pinned, copies go without them.
    """

    def __init__(self, buffers: int, buffer_bytes: int, registrar: Registrar) -> None:
        self._arenas = [Arena(buffer_bytes, purpose="a ring for copies to the GPU") for _ in range(buffers)]
        self._buffers = [arena.view(0, torch.uint8, (buffer_bytes,)) for arena in self._arenas]
        pieces = [pin(buffer, registrar) for buffer in self._buffers]
        self.is_pinned = all(pieces)
        if not self.is_pinned:
            for some in pieces:
                unpin(some, registrar)
        self._ends: list[CopyDone | None] = [None] * buffers
        self._next = 0

    def copy(self, source: torch.Tensor, start_copy: Callable[[torch.Tensor, int], CopyDone]) -> None:
        """Copy uint8 `source`; `start_copy` gets a piece and where in `source` it begins."""
        if not self.is_pinned:
            start_copy(source, 0)
            return
        room = self._buffers[0].nbytes
        for begin in range(0, source.nbytes, room):
            piece = source[begin : begin + room]
            index, self._next = self._next, (self._next + 1) % len(self._buffers)
            if (end := self._ends[index]) is not None:
                end.synchronize()
            buffer = self._buffers[index][: piece.nbytes]
            buffer.copy_(piece)
            self._ends[index] = start_copy(buffer, begin)
