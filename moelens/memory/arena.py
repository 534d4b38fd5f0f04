"""One exact-size block of memory, handed out as tensors."""

from __future__ import annotations

import math
import mmap

import torch

from moelens.errors import CapacityError
from moelens.memory.available import available_bytes

ALIGNMENT = 64  # bytes; a cache line, and the widest vector that a kernel loads


class Arena:
    """`nbytes` of zeros in one anonymous mapping, in huge pages where the system gives them.

    Pages take RAM when they are first written. Raises CapacityError when the machine or a control group has less
    memory left than that; `purpose` names the use in the message.
    """

    def __init__(self, nbytes: int, *, purpose: str = "an arena") -> None:
        assert nbytes >= 0
        available = available_bytes()
        if available is not None and nbytes > available:
            raise CapacityError(_too_large(purpose, nbytes, f"{_gb(available)} is available"))
        self.nbytes = nbytes
        try:
            # Private, not the default shared: only private anonymous memory gets transparent huge pages.
            self._memory = mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise CapacityError(_too_large(purpose, nbytes, f"the system refuses it ({error})")) from error
        _ask_for_huge_pages(self._memory)

    @classmethod
    def of_file(cls, file: int, nbytes: int, *, writing: bool) -> Arena:
        """The first `nbytes` > 0 bytes of an open file, of which memory holds one copy for all processes.

        With `writing`, what is written goes to the file; else it would stay private to this process.
        """
        arena = cls.__new__(cls)
        arena.nbytes = nbytes
        # Not read-only, as torch has no such tensors; a private page that nobody writes is the file's own.
        arena._memory = mmap.mmap(file, nbytes, flags=mmap.MAP_SHARED if writing else mmap.MAP_PRIVATE)
        _ask_for_huge_pages(arena._memory)  # which tmpfs has
        return arena

    def flush(self) -> None:
        """Have the file hold what was written."""
        self._memory.flush()

    def lease(self) -> memoryview:
        """All bytes, as an object of its own: it dies with the last tensor that was made from it."""
        return memoryview(self._memory)

    def view(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor over the arena's bytes from `offset` (a multiple of 64) on; it keeps the arena alive."""
        count = math.prod(shape)
        assert offset >= 0 and offset % ALIGNMENT == 0, f"offset {offset} is not a multiple of {ALIGNMENT}"
        assert offset + count * dtype.itemsize <= self.nbytes, f"{shape} at {offset} ends outside {self.nbytes} bytes"
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=offset).view(shape)


def align(nbytes: int, alignment: int) -> int:
    """`nbytes` rounded up to a multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment


def _ask_for_huge_pages(memory: mmap.mmap) -> None:
    """A wish: a kernel built without them refuses it, and 4 KiB pages are right too, only slower to read."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return


def _too_large(purpose: str, nbytes: int, found: str) -> str:
    return (
        f"{_gb(nbytes)} ({nbytes} bytes) of memory for {purpose} is more than there is: {found}. "
        "End other programs, raise the container's memory limit, or use a smaller model or cache."
    )


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
