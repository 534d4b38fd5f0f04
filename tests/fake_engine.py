"""An engine without a model: each running request gets a token per step, from a script or from its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from moelens.cost.routing import EVEN
from moelens.engine import EngineTotals
from moelens.models.config import GQA, DenseFFN, LayerConfig, ModelConfig, Rope
from moelens.outputs import Logprob
from moelens.pipeline.report import StepReport
from moelens.plan import Plan
from moelens.request import Request, mix
from moelens.stopping import Stopping
from moelens.text.detokenize import Decoder

LAYER = LayerConfig(GQA(2, 1, 2, 1.0, Rope((1.0,))), DenseFFN(4))
CONFIG = ModelConfig("fake", 4, 300, (LAYER,), torch.bfloat16, max_context=64, tied_embeddings=False)

NextToken = Callable[[Request], int]


@dataclass
class FakeReport:
    finished: Sequence[Request]
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class FakeScheduler:
    running: int
    waiting: int
    free_blocks: int = 3
    preemptions: int = 0
    shared_tokens: int = 0


class FakeEngine:
    """Runs at most `max_requests` at once, the latest first, so that outputs come in another order than prompts."""

    def __init__(
        self,
        tokenizer: Decoder | None,
        *,
        vocab: int = 300,
        max_model_len: int = 64,
        max_requests: int = 3,
        next_token: NextToken | None = None,
    ) -> None:
        self.vocab = vocab
        self.max_model_len = max_model_len
        self.eos_token_ids = (1,)
        self.constraint_seconds = 0.0
        self.totals = EngineTotals()
        self.plan = Plan(step_tokens=max_requests, max_requests=max_requests, kv_blocks=4)
        self.config = CONFIG
        self.has_device = False
        self.cost = None
        self.routing = EVEN
        self.disk_bytes_per_second = None
        self.chooser = None
        self.on_step: Callable[[StepReport], None] | None = None
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.seen: list[Request] = []
        self.aborted: list[int] = []
        self.interrupt_at_step: int | None = None
        self.lose_report_at_step: int | None = None
        self.refuse_after: int | None = None
        self._max_requests = max_requests
        self._next_token = next_token or _seeded
        self._stopping = Stopping(tokenizer, [1], max_model_len)

    @property
    def scheduler(self) -> FakeScheduler:
        return FakeScheduler(len(self.running), len(self.waiting))

    def add(self, request: Request) -> None:
        if self.refuse_after is not None and len(self.seen) >= self.refuse_after:
            raise MemoryError("full")
        self.seen.append(request)
        self.waiting.append(request)

    def abort(self, request_ids: Iterable[int]) -> list[Request]:
        ids = set(request_ids)
        dropped = [r for r in (*self.waiting, *self.running) if r.request_id in ids]
        self.waiting = [r for r in self.waiting if r.request_id not in ids]
        self.running = [r for r in self.running if r.request_id not in ids]
        self.aborted += [r.request_id for r in dropped]
        for request in dropped:
            request.finish_reason = "abort"
        return dropped

    def run(self) -> Iterator[FakeReport]:
        while self.waiting or self.running:
            self.totals.steps += 1
            if self.totals.steps == self.interrupt_at_step:
                raise KeyboardInterrupt
            prompt_tokens = 0
            while self.waiting and len(self.running) < self._max_requests:
                self.running.append(self.waiting.pop())
                prompt_tokens += len(self.running[-1].prompt_token_ids)
            output_tokens = len(self.running)
            finished = [request for request in self.running if self._advance(request)]
            self.running = [request for request in self.running if not request.finished]
            if self.totals.steps == self.lose_report_at_step:
                raise KeyboardInterrupt
            yield FakeReport(finished, prompt_tokens, output_tokens)

    def _advance(self, request: Request) -> bool:
        token_id = self._next_token(request)
        request.first_token_time = request.first_token_time or request.arrival_time + 1
        request.last_token_time = request.first_token_time
        if token_id < 0:
            request.finish_reason, request.stop_reason = "error", "the model's logits were not finite"
            return True
        request.output_token_ids.append(token_id)
        if request.params.num_logprobs is not None:
            request.logprobs = request.logprobs or []
            request.logprobs.append({token_id: Logprob(-0.5, 1)})
            request.cumulative_logprob -= 0.5
        if request.params.prompt_logprobs is not None and len(request.prompt_token_ids) > 1:
            request.prompt_logprobs = [None, *({token: Logprob(-1.0, 1)} for token in request.prompt_token_ids[1:])]
        finish = self._stopping.check(request)
        if finish is not None:
            request.finish_reason, request.stop_reason = finish.reason, finish.stop_reason
        return finish is not None


def _seeded(request: Request) -> int:
    """Any token but the special ones."""
    return 4 + mix(request.seed + request.num_output_tokens) % 256
