"""Which blocks of the key/value cache are free, which hold whose tokens, and which can be shared."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt


class BlockPool:
    """Hands out block ids, counts who holds them, and finds full blocks by the key of what they hold.

    A published block that nobody holds any more is kept for whoever asks for its key, at most `retained` of them, the
    least recently held going first; it counts as free. Low ids are given first, so that memory that was never needed is
    never touched.
    """

    def __init__(self, blocks: int, retained: int = 0) -> None:
        self._free = list(range(blocks - 1, -1, -1))
        self._holders = [0] * blocks
        self._keys: dict[int, bytes] = {}  # of published blocks
        self._published: dict[bytes, int] = {}
        self._retained: OrderedDict[int, None] = OrderedDict()  # published, held by nobody, oldest first
        self._most_retained = retained
        self._blocks = blocks
        self.touched = 0  # blocks that were ever given: those given back go first

    @property
    def free(self) -> int:
        """Number of blocks that nobody holds."""
        return len(self._free) + len(self._retained)

    def take(self, count: int) -> list[int]:
        """`count` blocks that nobody holds; the caller has checked that there are as many."""
        assert 0 <= count <= self.free
        taken = [self._free.pop() if self._free else self._forget_oldest() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        self.touched = max(self.touched, self._blocks - len(self._free))
        return taken

    def find(self, keys: list[bytes]) -> list[int]:
        """The published blocks of the longest run of `keys` from the first on."""
        found: list[int] = []
        for key in keys:
            block = self._published.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def unheld(self, blocks: list[int]) -> int:
        """How many of `blocks` count as free."""
        return sum(self._holders[block] == 0 for block in blocks)

    def share(self, blocks: list[int]) -> None:
        """Hold published blocks once more."""
        for block in blocks:
            self._retained.pop(block, None)
            self._holders[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """Let a held, full block be found by `key`; of two blocks that hold the same, the first is found."""
        assert self._holders[block] > 0
        if key not in self._published and block not in self._keys:
            self._published[key] = block
            self._keys[block] = key

    def give_back(self, blocks: list[int]) -> None:
        """Hold blocks once less. A request's last blocks go first: its first are the likeliest to be shared."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._keys:
                self._retained[block] = None
            else:
                self._free.append(block)
        while len(self._retained) > self._most_retained:
            self._free.append(self._forget_oldest())

    def forget_retained(self) -> None:
        """Free every block that is kept though nobody holds it."""
        while self._retained:
            self._free.append(self._forget_oldest())

    def _forget_oldest(self) -> int:
        block, _ = self._retained.popitem(last=False)
        del self._published[self._keys.pop(block)]
        return block


class BlockTables:
    """The blocks of every running request, one row each, in one int32 table that batches are cut from.

    It begins with rows for `requests`, and grows when there are more.
    """

    def __init__(self, pool: BlockPool, requests: int, block_tokens: int) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._table = np.zeros((requests, 16), dtype=np.int32)
        self._lengths = [0] * requests
        self._free_rows = list(range(requests - 1, -1, -1))

    def blocks_needed(self, tokens: int) -> int:
        """Blocks that `tokens` tokens of one request take."""
        return -(-tokens // self._block_tokens)

    def missing(self, row: int, tokens: int) -> int:
        """Blocks that row still lacks to hold `tokens` tokens."""
        return max(0, self.blocks_needed(tokens) - self._lengths[row])

    def add_row(self, shared: list[int]) -> int:
        """A row that begins with blocks which others hold or held."""
        self._pool.share(shared)
        if not self._free_rows:
            rows = len(self._lengths)
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
            self._lengths += [0] * rows
            self._free_rows = list(range(2 * rows - 1, rows - 1, -1))
        row = self._free_rows.pop()
        self._append(row, shared)
        return row

    def grow(self, row: int, tokens: int) -> None:
        """Give row the blocks that it lacks to hold `tokens` tokens; the caller has checked that they are free."""
        self._append(row, self._pool.take(self.missing(row, tokens)))

    def remove_row(self, row: int) -> None:
        """Free a row and give its blocks back."""
        self._pool.give_back(self._table[row, : self._lengths[row]].tolist())
        self._lengths[row] = 0
        self._free_rows.append(row)

    def block(self, row: int, index: int) -> int:
        """The id of a row's block."""
        assert index < self._lengths[row]
        return int(self._table[row, index])

    def select(self, rows: list[int]) -> npt.NDArray[np.int32]:
        """Block ids [len(rows), columns] int32, with as many columns as the longest row has blocks."""
        columns = max((self._lengths[row] for row in rows), default=0)
        return self._table[rows, : max(columns, 1)]

    def _append(self, row: int, blocks: list[int]) -> None:
        begin = self._lengths[row]
        end = begin + len(blocks)
        if end > self._table.shape[1]:
            wider = np.zeros((self._table.shape[0], max(end, 2 * self._table.shape[1])), dtype=np.int32)
            wider[:, : self._table.shape[1]] = self._table
            self._table = wider
        self._table[row, begin:end] = blocks
        self._lengths[row] = end
