"""Chooses the rows of the next step, and takes in the tokens that a step gave."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from moelens.errors import ValidationError
from moelens.plan import Plan
from moelens.request import Request
from moelens.schedule.admission import BlockDemand, OutputLengths
from moelens.schedule.batch import Batch, Chunk, Running, make_batch, shape_of
from moelens.schedule.blocks import BlockPool, BlockTables
from moelens.schedule.prefix import BlockKeys
from moelens.schedule.split import NoPrices, Pricing, split_step

LEAST_OF_STEP = 8  # the part of a step's rows that prompts get even when there is no time for them
LOOK_AHEAD = 64  # waiting requests that may be passed over in a step because another computes their prefix


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

    Where it is known when requests end, or can be told from those that have ended, they are admitted so that nobody is
    preempted and the cache is full all the same (`moelens.schedule.admission`).

    A prompt that begins as another did takes over the full blocks they share instead of computing them; while another
    is just computing them, it waits and those behind it go first.
    """

    def __init__(self, plan: Plan, finish: Finish, pricing: Pricing | None = None) -> None:
        """`pricing` says what rows take where a step is cut into parts; None: nobody knows."""
        self._plan = plan
        self._pricing = pricing or NoPrices()
        self._finish = finish
        self._pool = BlockPool(plan.kv_blocks, plan.retained_blocks)
        self._tables = BlockTables(self._pool, plan.max_requests, plan.block_tokens)
        self._demand = BlockDemand(plan.kv_blocks, plan.block_tokens, plan.max_requests)
        self._lengths = OutputLengths()
        self._computing: dict[bytes, Running] = {}  # full blocks of prompts that are not cached yet, by key
        self._waiting: deque[Request] = deque()
        self._running: list[Running] = []
        self.preemptions = 0
        self.shared_tokens = 0  # of prompts, taken over instead of computed

    @property
    def waiting(self) -> int:
        """Number of requests that hold no blocks."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of requests that hold blocks."""
        return len(self._running)

    @property
    def touched_blocks(self) -> int:
        """Blocks that somebody has held at some time, and whose memory is therefore taken."""
        return self._pool.touched

    @property
    def free_blocks(self) -> int:
        """Blocks of the cache that nobody holds."""
        return self._pool.free

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

    def adopt(self, plan: Plan) -> None:
        """Go on with other limits of steps; the cache stays as it is."""
        assert (plan.kv_blocks, plan.block_tokens) == (self._plan.kv_blocks, self._plan.block_tokens)
        self._plan = plan

    def expected_output_tokens(self, request: Request) -> int:
        """Of a request, in all: its limit, or where it may end before that what outputs of late were long."""
        return request.num_output_tokens + self._left(request)

    def forget_prefixes(self) -> None:
        """Free the blocks that are kept for prompts that begin alike."""
        self._pool.forget_retained()

    def next_step(self) -> Step | None:
        """The next step, None when no request is left."""
        groups = self.next_chunks()
        if not groups:
            return None
        parts = tuple(make_batch(group, self._tables, self._plan.block_tokens) for group in groups)
        return Step(tuple(chunk for group in groups for chunk in group), parts)

    def next_chunks(self) -> list[list[Chunk]]:
        """The next step's chunks, a list per part, without laying them out; none when no request is left."""
        chunks, preempted = self._decode_chunks()
        budget = self._prompt_rows(chunks)
        for running in self._running if len(chunks) < len(self._running) else ():
            if running.pending > 1:
                budget -= self._go_on(running, chunks, budget)
        if not preempted:
            self._admit(chunks, budget)
        if not chunks:
            assert not self._waiting, "a waiting request fits in an empty cache"
            return []
        return split_step(chunks, self._plan, self._pricing)

    def commit(self, step: Step, tokens: Mapping[int, int]) -> list[Request]:
        """Take in a step's outcome, `tokens` by request id; frees and returns the requests that finished.

        A request whose finish_reason is already set (its logits were not finite) gets no token and ends.
        """
        return self.commit_chunks(step.chunks, tokens)

    def commit_chunks(self, chunks: Iterable[Chunk], tokens: Mapping[int, int]) -> list[Request]:
        """As `commit`, of chunks that nobody laid out."""
        finished: list[Request] = []
        self._demand.step()
        for chunk in chunks:
            running, completes = chunk.running, chunk.completes
            request = running.request
            self._advance(running, chunk.count)
            if completes and request.finish_reason is None:
                request.output_token_ids.append(tokens[request.request_id])
                self._finish(request)
            if request.finish_reason is not None:
                self._remove(running)
                self._lengths.observe(request)
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
            tokens = running.cached + 1
            if running.request.num_tokens != tokens:
                continue
            # Its blocks hold what is cached: only a token that begins a block may find none.
            if running.cached % self._plan.block_tokens == 0 and self._tables.missing(running.row, tokens):
                while self._tables.missing(running.row, tokens) > self._pool.free:
                    preempted = True
                    self._preempt(self._running[-1])
                    if position > len(self._running):
                        return chunks, True  # it was the youngest itself
                self._tables.grow(running.row, tokens)
            chunks.append(Chunk(running, 1))
        return chunks, preempted

    def _prompt_rows(self, decodes: list[Chunk]) -> int:
        """Rows that the step has for prompts: its limit, or those that there is time for while weights come.

        With more a step takes longer. That is as well where the cache holds all that wait, as there are fewer steps.
        Where it does not, the rows that one step has too many are missing in another.
        """
        most = self._plan.step_tokens - len(decodes)
        if not self._plan.choose_parts or not self._waiting:
            return most
        head = self._waiting[0]
        if not self._lengths.foresees(head) or self._demand.holds(
            head.num_tokens, self._left(head), len(self._waiting)
        ):
            return most
        free = self._pricing.free_prompt_rows(shape_of(decodes), most)
        return min(most, max(free, -(-self._plan.step_tokens // LEAST_OF_STEP)))

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        passed_over: list[Request] = []
        while (
            self._waiting
            and budget > 0
            and len(self._running) < self._plan.max_requests
            and len(passed_over) < LOOK_AHEAD
        ):
            request = self._waiting[0]
            keys = BlockKeys(self._plan.block_tokens)
            shareable = self._shareable(request, keys)
            shared = self._pool.find(shareable)
            if len(shared) < len(shareable) and shareable[len(shared)] in self._computing:
                passed_over.append(self._waiting.popleft())
                continue
            if not self._fits(request, shared):
                break
            self._waiting.popleft()
            running = self._start(request, keys, shared)
            self._computing.update((key, running) for key in shareable[len(shared) :])
            budget -= self._go_on(running, chunks, budget)
        self._waiting.extendleft(reversed(passed_over))

    def _go_on(self, running: Running, chunks: list[Chunk], budget: int) -> int:
        """Give a prompt as many rows of the step as there are for it; returns their number."""
        count = max(0, min(running.pending, budget))
        if count:
            chunks.append(Chunk(running, count))
        if count < running.pending:
            self._demand.delay(running.row)
        return count

    def _shareable(self, request: Request, keys: BlockKeys) -> list[bytes]:
        """Keys of the full blocks that may be taken over: all but the last token's, which has to give logits."""
        params = request.params
        if not self._plan.share_prefixes or params.prompt_logprobs is not None or params.skip_reading_prefix_cache:
            return []
        blocks = (request.num_tokens - 1) // self._plan.block_tokens
        return keys.up_to(request.prompt_token_ids, request.output_token_ids, blocks)

    def _fits(self, request: Request, shared: list[int]) -> bool:
        """Whether it finds its blocks, and all that run will find theirs in the coming steps.

        While nobody knows when requests end, it is enough that each that runs may grow by a block.
        """
        if not self._running:
            return True
        needed = self._tables.blocks_needed(request.num_tokens) - len(shared) + self._pool.unheld(shared)
        if needed > self._pool.free:
            return False
        if not self._lengths.foresees(request) and needed + len(self._running) <= self._pool.free:
            return True
        others = len(shared) - self._pool.unheld(shared)
        return self._demand.fits(request.num_tokens, self._left(request), others, len(self._waiting))

    def _left(self, request: Request) -> int:
        return self._lengths.left(request, self._plan.kv_tokens - request.num_tokens)

    def _start(self, request: Request, keys: BlockKeys, shared: list[int]) -> Running:
        cached = len(shared) * self._plan.block_tokens
        unheld = self._pool.unheld(shared)
        self.shared_tokens += cached
        if not request.preemptions:
            request.num_cached_tokens = cached
        running = Running(request, self._tables.add_row(shared), keys, cached)
        self._tables.grow(running.row, request.num_tokens)
        self._running.append(running)
        waiting = 1 + len(self._waiting) if self._lengths.foresees(request) else 0
        self._demand.start(running.row, request.num_tokens, self._left(request), len(shared) - unheld, waiting)
        return running

    def _advance(self, running: Running, count: int) -> None:
        """Count tokens as cached, and publish the blocks that they fill."""
        before = running.cached // self._plan.block_tokens
        running.cached += count
        after = running.cached // self._plan.block_tokens
        if before == after or not self._plan.share_prefixes:
            return
        keys = running.block_keys(after)
        for index in range(before, after):
            self._pool.publish(self._tables.block(running.row, index), keys[index])
            if self._computing.get(keys[index]) is running:
                del self._computing[keys[index]]

    def _preempt(self, running: Running) -> None:
        self._remove(running)
        running.request.preemptions += 1
        self.preemptions += 1
        self._waiting.appendleft(running.request)

    def _remove(self, running: Running) -> None:
        self._running.remove(running)
        self._demand.end(running.row)
        self._tables.remove_row(running.row)
        if running.pending > 1:
            self._computing = {key: other for key, other in self._computing.items() if other is not running}
