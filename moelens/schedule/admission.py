"""Whether the cache will do for one request more, until all that run have ended."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moelens.request import Request

MOMENTS = 64  # coming steps at which the blocks that will be held are counted, close together at first
KNOWN = 16  # ended requests from which on the mean length of an output is taken to be known
RECENT = 64  # requests over which that mean goes, about
LONGER = 0.25  # of the mean: what a request that is longer already is taken to need yet

Moments = npt.NDArray[np.int64]


def ends_at_its_limit(request: Request) -> bool:
    """Whether it is known when the request will end."""
    params = request.params
    return params.ignore_eos and not (params.stop or params.stop_token_ids) and params.max_tokens is not None


class OutputLengths:
    """What is to be expected of outputs that may end before their limit, by those that have ended."""

    def __init__(self) -> None:
        self._ended = 0
        self._mean = 0.0

    def foresees(self, request: Request) -> bool:
        """Whether it is known, or can be told from those that have ended, how long the request's output gets."""
        return ends_at_its_limit(request) or self._ended >= KNOWN

    def observe(self, request: Request) -> None:
        """Take in a request that has ended."""
        if not ends_at_its_limit(request):
            self._ended += 1
            self._mean += (request.num_output_tokens - self._mean) / min(self._ended, RECENT)

    def left(self, request: Request, most: int) -> int:
        """Output tokens that the request is expected to have yet, one at least and its limit or `most` at most."""
        limit = request.params.max_tokens
        left = most if limit is None else min(most, limit - request.num_output_tokens)
        if self._ended >= KNOWN and not ends_at_its_limit(request):
            expected = max(self._mean - request.num_output_tokens, LONGER * self._mean)
            left = min(left, round(expected))
        return max(1, left)


class BlockDemand:
    """The blocks that running requests will hold in each of the coming steps.

    A request of n tokens that has r output tokens yet to come is in r steps, this one among them, and holds
    ceil((n + t) / b) blocks in the one t steps from now. A step is counted together with those since the moment before
    it, at the most blocks that each request holds in any: so the sums are never too small.

    Requests that begin together grow together, and leave half of the cache idle while they are young. So where many
    wait, they are let in at a steady pace: each step offers kv_blocks blocks for one step, and a request takes the sum
    of what it holds over its steps. Ages are then spread, and what those that end give back is what the others need.
    """

    def __init__(self, kv_blocks: int, block_tokens: int, requests: int) -> None:
        self._kv_blocks = kv_blocks
        self._block_tokens = block_tokens
        # By row of the block tables: tokens and the step of the end are told from the step `_now`, so that a step of
        # all requests changes one number.
        self._origins = np.zeros(requests, np.int64)  # tokens less the step
        self._ends = np.zeros(requests, np.int64)
        self._shared = np.zeros(requests, np.int64)  # blocks that others have, too
        self._runs = np.zeros(requests, bool)
        self._most = np.zeros(requests, np.int64)  # blocks at the end
        self._now = 0
        self._credit = float(kv_blocks)  # blocks times steps that are yet to be handed out
        self._moments: Moments | None = None
        self._blocks: npt.NDArray[np.int64] | None = None

    def start(self, row: int, tokens: int, left: int, shared: int, waiting: int) -> None:
        """Count a request in, whose first output token comes with this step; with none `waiting` there is no pace."""
        if row >= self._runs.size:
            self._grow()
        if self._is_paced(tokens, left, shared, waiting):
            self._credit -= self._held_over_time(tokens, left, shared)
        if self._moments is not None and self._blocks is not None:
            self._blocks += self._curve(tokens, left, shared, self._moments)
        self._origins[row], self._ends[row] = tokens - self._now, self._now + left
        self._shared[row], self._runs[row] = shared, True
        self._most[row] = self._blocks_at_end(tokens, left, shared)

    def end(self, row: int) -> None:
        """Count a request out."""
        self._runs[row] = False
        self._moments = None

    def delay(self, row: int) -> None:
        """Its prompt takes a step more before the first token comes."""
        self._origins[row] -= 1
        self._ends[row] += 1

    def step(self) -> None:
        """A step is over. What was expected to have ended and has not goes on for one step at least."""
        self._now += 1
        self._credit = min(self._credit, 0.0) + self._kv_blocks
        self._moments = None
        np.maximum(self._ends, self._now + 1, out=self._ends, where=self._runs)

    def fits(self, tokens: int, left: int, shared: int, waiting: int) -> bool:
        """Whether a request, of `waiting` that wait, should begin in this step: nobody will run short of blocks."""
        if self._credit <= 0 and self._is_paced(tokens, left, shared, waiting):
            return False
        most = self._blocks_at_end(tokens, left, shared)
        if int(self._most @ self._runs) + most <= self._kv_blocks:
            return True  # even if all were as long as they get at the same time
        horizon = max(left, int(np.max(self._ends - self._now, initial=1, where=self._runs)))
        if self._moments is None or self._moments[-1] < horizon:
            self._moments = np.unique(np.geomspace(1, horizon, MOMENTS).round().astype(np.int64))
            self._blocks = self._demand(self._moments)
        assert self._blocks is not None
        more = self._curve(tokens, left, shared, self._moments)
        return bool(np.all(self._blocks + more <= self._kv_blocks))

    def _grow(self) -> None:
        """Make room for as many rows again."""
        arrays = (self._origins, self._ends, self._shared, self._most)
        self._origins, self._ends, self._shared, self._most = (np.concatenate([a, np.zeros_like(a)]) for a in arrays)
        self._runs = np.concatenate([self._runs, np.zeros_like(self._runs)])

    def holds(self, tokens: int, left: int, waiting: int) -> bool:
        """Whether the empty cache has room for as many such requests as are `waiting`."""
        return waiting * self._blocks_at_end(tokens, left, 0) <= self._kv_blocks

    def _is_paced(self, tokens: int, left: int, shared: int, waiting: int) -> bool:
        """Whether `waiting` such requests end sooner at a steady pace than in waves that fill the cache."""
        waves = -(-waiting * self._blocks_at_end(tokens, left, shared) // self._kv_blocks)
        return waiting * self._held_over_time(tokens, left, shared) / self._kv_blocks + left < waves * left

    def _blocks_at_end(self, tokens: int, left: int, shared: int) -> int:
        return -(-(tokens + left) // self._block_tokens) - shared

    def _held_over_time(self, tokens: int, left: int, shared: int) -> float:
        """Blocks times steps: half of the last block is empty, on average."""
        return left * ((tokens + left / 2) / self._block_tokens + 0.5 - shared)

    def _demand(self, moments: Moments) -> npt.NDArray[np.int64]:
        rows = np.flatnonzero(self._runs)
        if not rows.size:
            return np.zeros(moments.shape, np.int64)
        tokens = (self._origins[rows] + self._now)[:, None]
        left = (self._ends[rows] - self._now)[:, None]
        held = self._held(tokens, left, self._shared[rows][:, None], moments)
        return np.asarray(held.sum(axis=0), np.int64)

    def _curve(self, tokens: int, left: int, shared: int, moments: Moments) -> npt.NDArray[np.int64]:
        return self._held(np.int64(tokens), np.int64(left), np.int64(shared), moments)

    def _held(
        self,
        tokens: npt.NDArray[np.int64] | np.int64,
        left: npt.NDArray[np.int64] | np.int64,
        shared: npt.NDArray[np.int64] | np.int64,
        moments: Moments,
    ) -> npt.NDArray[np.int64]:
        """Blocks at each moment, of requests that are alive at any step after the moment before it."""
        since = np.concatenate(([1], moments[:-1] + 1))
        latest = np.minimum(moments, left - 1)
        held = (tokens + latest + (self._block_tokens - 1)) // self._block_tokens - shared
        return np.asarray(np.where(since < left, held, 0), np.int64)
