"""Chooses the rows of the next step, and takes in the tokens that a step gave."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from moelens.errors import ValidationError
from moelens.plan import Plan
from moelens.request import Request
from moelens.schedule.batch import Batch, Chunk, Running, make_batch, split_chunks
from moelens.schedule.blocks import BlockAllocator, BlockTables


class Finish(Protocol):
    """Decides, after a token was appended, whether the request ends, and writes its reason into it."""

    def __call__(self, request: Request) -> bool: ...


@dataclass(frozen=True)
class Step:
    """One pass over the model: its chunks, laid out as one batch per part."""

    chunks: tuple[Chunk, ...]
    parts: tuple[Batch, ...]


class Scheduler:
    """First come, first served, over a bounded cache.

    Each step: every running request that waits for one token gives a decode row; then running prompts go on; then
    prompts are admitted from the head of the queue, until the step is full or blocks run short. When a decode finds no
    free block, the youngest running request is preempted: its blocks are dropped and it is computed again later, from
    the head of the queue; no prompt is admitted in that step. The oldest running request can always go on, because the
    whole cache holds at least one request of the longest length: so every request ends.
    """

    def __init__(self, plan: Plan, finish: Finish) -> None:
        self._plan = plan
        self._finish = finish
        self._allocator = BlockAllocator(plan.kv_blocks)
        self._tables = BlockTables(self._allocator, plan.max_requests, plan.block_tokens)
        self._waiting: deque[Request] = deque()
        self._running: list[Running] = []
        self.preemptions = 0

    @property
    def waiting(self) -> int:
        """Number of requests that hold no blocks."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of requests that hold blocks."""
        return len(self._running)

    @property
    def free_blocks(self) -> int:
        """Blocks of the cache that nobody holds."""
        return self._allocator.free

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises ValidationError when the cache could never hold it.
        """
        tokens = request.num_tokens + 1
        if self._tables.blocks_needed(tokens) > self._plan.kv_blocks:
            raise ValidationError(
                f"Request {request.request_id} has {request.num_tokens} tokens, but the key/value cache holds "
                f"{self._plan.kv_tokens}. Shorten the prompt or raise kv_cache_memory_bytes.",
                parameter="prompt_token_ids",
                value=request.num_tokens,
            )
        self._waiting.append(request)

    def abort(self, request_ids: Iterable[int]) -> list[Request]:
        """Drop requests that are not finished; returns those that were found."""
        wanted = set(request_ids)
        dropped = [request for request in self._waiting if request.request_id in wanted]
        self._waiting = deque(request for request in self._waiting if request.request_id not in wanted)
        for running in [r for r in self._running if r.request.request_id in wanted]:
            self._remove(running)
            dropped.append(running.request)
        for request in dropped:
            request.finish_reason = "abort"
        return dropped

    def next_step(self) -> Step | None:
        """The next step, None when no request is left."""
        chunks, preempted = self._decode_chunks()
        budget = self._plan.step_tokens - len(chunks)
        for running in self._running:
            if running.pending > 1 and budget > 0:
                chunks.append(Chunk(running, min(running.pending, budget)))
                budget -= chunks[-1].count
        if not preempted:
            self._admit(chunks, budget)
        if not chunks:
            assert not self._waiting, "a waiting request fits in an empty cache"
            return None
        groups = split_chunks(chunks, self._plan.parts)
        parts = tuple(make_batch(group, self._tables, self._plan.block_tokens) for group in groups)
        return Step(tuple(chunks), parts)

    def commit(self, step: Step, tokens: Mapping[int, int]) -> list[Request]:
        """Take in a step's outcome, `tokens` by request id; frees and returns the requests that finished.

        A request whose finish_reason is already set (its logits were not finite) gets no token and ends.
        """
        finished: list[Request] = []
        for chunk in step.chunks:
            running, completes = chunk.running, chunk.completes
            request = running.request
            running.cached += chunk.count
            if completes and request.finish_reason is None:
                request.output_token_ids.append(tokens[request.request_id])
                self._finish(request)
            if request.finish_reason is not None:
                self._remove(running)
                finished.append(request)
        return finished

    def _decode_chunks(self) -> tuple[list[Chunk], bool]:
        """One row of each running request that has one pending token, preempting the youngest as blocks run short."""
        chunks: list[Chunk] = []
        preempted = False
        position = 0
        while position < len(self._running):
            running = self._running[position]
            position += 1
            if running.pending != 1:
                continue
            while self._tables.missing(running.row, running.request.num_tokens) > self._allocator.free:
                preempted = True
                self._preempt(self._running[-1])
                if position > len(self._running):
                    return chunks, True  # it was the youngest itself
            self._tables.grow(running.row, running.request.num_tokens)
            chunks.append(Chunk(running, 1))
        return chunks, preempted

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        while self._waiting and budget > 0 and self._tables.free_rows:
            request = self._waiting[0]
            needed = self._tables.blocks_needed(request.num_tokens)
            reserve = len(self._running)  # a block for the next growth of each, or they would be preempted at once
            if needed + reserve > self._allocator.free and self._running:
                return
            self._waiting.popleft()
            running = Running(request, self._tables.add_row())
            self._tables.grow(running.row, request.num_tokens)
            self._running.append(running)
            chunks.append(Chunk(running, min(running.pending, budget)))
            budget -= chunks[-1].count

    def _preempt(self, running: Running) -> None:
        self._remove(running)
        running.request.preemptions += 1
        self.preemptions += 1
        self._waiting.appendleft(running.request)

    def _remove(self, running: Running) -> None:
        self._running.remove(running)
        self._tables.remove_row(running.row)
