"""Which blocks of the key/value cache are free, and which hold whose tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class BlockAllocator:
    """Hands out block ids; low ids first, so that memory that was never needed is never touched."""

    def __init__(self, blocks: int) -> None:
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        """Number of blocks that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free blocks; the caller has checked that there are as many."""
        assert 0 <= count <= len(self._free)
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        taken.reverse()
        return taken

    def give_back(self, blocks: list[int]) -> None:
        """Free blocks that `take` gave."""
        self._free.extend(reversed(blocks))


class BlockTables:
    """The blocks of every running request, one row each, in one int32 table that batches are cut from."""

    def __init__(self, allocator: BlockAllocator, requests: int, block_tokens: int) -> None:
        self._allocator = allocator
        self._block_tokens = block_tokens
        self._table = np.zeros((requests, 16), dtype=np.int32)
        self._lengths = [0] * requests
        self._free_rows = list(range(requests - 1, -1, -1))

    @property
    def free_rows(self) -> int:
        """Number of requests that could be added."""
        return len(self._free_rows)

    def blocks_needed(self, tokens: int) -> int:
        """Blocks that `tokens` tokens of one request take."""
        return -(-tokens // self._block_tokens)

    def missing(self, row: int, tokens: int) -> int:
        """Blocks that row still lacks to hold `tokens` tokens."""
        return max(0, self.blocks_needed(tokens) - self._lengths[row])

    def add_row(self) -> int:
        """A row with no blocks."""
        return self._free_rows.pop()

    def grow(self, row: int, tokens: int) -> None:
        """Give row the blocks that it lacks to hold `tokens` tokens; the caller has checked that they are free."""
        missing = self.missing(row, tokens)
        if not missing:
            return
        begin = self._lengths[row]
        end = begin + missing
        if end > self._table.shape[1]:
            wider = np.zeros((self._table.shape[0], max(end, 2 * self._table.shape[1])), dtype=np.int32)
            wider[:, : self._table.shape[1]] = self._table
            self._table = wider
        self._table[row, begin:end] = self._allocator.take(missing)
        self._lengths[row] = end

    def remove_row(self, row: int) -> None:
        """Free a row and its blocks."""
        self._allocator.give_back(self._table[row, : self._lengths[row]].tolist())
        self._lengths[row] = 0
        self._free_rows.append(row)

    def blocks_held(self, row: int) -> int:
        """Number of blocks of a row."""
        return self._lengths[row]

    def select(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Block ids [len(rows), columns] int32, with as many columns as the longest row has blocks."""
        columns = max((self._lengths[row] for row in rows), default=0)
        return np.ascontiguousarray(self._table[rows, : max(columns, 1)])
