"""Takes the prompts of calls through the engine, and hands each one's output back when it is complete."""

from __future__ import annotations

import itertools
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from moelens.cost.workload import Workload
from moelens.errors import ValidationError
from moelens.outputs import RequestOutput
from moelens.progress import GenerationBar
from moelens.request import Request, request_seed
from moelens.results import make_output
from moelens.sampling_params import SamplingParams
from moelens.structured_outputs import StructuredOutputsParams
from moelens.text.grammar import GrammarCompiler
from moelens.text.prompts import PromptLimits, Rendered
from moelens.text.tokenizer import Tokenizer, bad_word_sequences

Params = SamplingParams | Sequence[SamplingParams]


class Report(Protocol):
    """What one step did; see `moelens.pipeline.report.StepReport`."""

    @property
    def finished(self) -> Sequence[Request]: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


class StepCounter(Protocol):
    """Counts steps; see `moelens.progress.GenerationBar`."""

    def advance(self, finished: int, prompt_tokens: int, output_tokens: int) -> None: ...


class RequestRunner(Protocol):
    """The engine, as far as it is used here; see `moelens.engine.Engine`."""

    max_model_len: int
    eos_token_ids: tuple[int, ...]

    @property
    def vocab(self) -> int: ...
    def add(self, request: Request) -> None: ...
    def abort(self, request_ids: Iterable[int]) -> object: ...
    def run(self) -> Iterator[Report]: ...


class Job:
    """One prompt on its way: the requests of its samples, `n` of them, and where its output goes."""

    __slots__ = ("call", "index", "prompt", "request_id", "requests", "unfinished")

    def __init__(self, call: Call, index: int, request_id: int, prompt: str | None, requests: tuple[Request, ...]):
        self.call = call
        self.index = index
        self.request_id = request_id
        self.prompt = prompt
        self.requests = requests
        self.unfinished = len(requests)


class Call:
    """The prompts of one call: how many were submitted, how many are on their way, and outputs not yet handed over."""

    def __init__(self) -> None:
        self.submitted = 0
        self.unfinished = 0
        self.ready: deque[RequestOutput] = deque()


class Session:
    """An engine, a tokenizer, and every call that is under way.

    Calls may overlap: a step runs the requests of all, and each call gets its own outputs.
    """

    def __init__(self, engine: RequestRunner, tokenizer: Tokenizer | None, *, seed: int, max_logprobs: int) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._seed = seed
        self._max_logprobs = max_logprobs
        self._grammars = None if tokenizer is None else GrammarCompiler(tokenizer, engine.vocab, engine.eos_token_ids)
        self._prompts = 0  # since the beginning
        self._requests = 0
        self._jobs: dict[int, Job] = {}  # by the ids of their unfinished requests

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, None with skip_tokenizer_init."""
        return self._tokenizer

    @property
    def limits(self) -> PromptLimits:
        """What prompts must keep to."""
        return PromptLimits(self._engine.vocab, self._engine.max_model_len)

    def prepare(self, params: SamplingParams) -> SamplingParams:
        """A private, checked copy that fits this model.

        Raises ValidationError.
        """
        own = params.clone()
        own.verify(vocab=self._engine.vocab, max_logprobs=self._max_logprobs)
        if self._tokenizer is not None:
            own.bad_words_token_ids = bad_word_sequences(self._tokenizer, own.bad_words or ())
        elif needing := [name for name in ("stop", "bad_words", "structured_outputs") if getattr(own, name)]:
            name = needing[0]
            raise ValidationError(
                f"{name} needs a tokenizer, but skip_tokenizer_init=True was given: use stop_token_ids or "
                "logit_bias, or leave skip_tokenizer_init out.",
                parameter=name,
                value=getattr(own, name),
            )
        if own.structured_outputs is not None:
            assert self._grammars is not None and isinstance(own.structured_outputs, StructuredOutputsParams)
            own.grammar = self._grammars.compile(own.structured_outputs)
        return own

    def submit_all(
        self, call: Call, prompts: Iterator[Rendered], count: int, params: Params, bar: Any | None
    ) -> list[str]:
        """Queue `count` prompts, all or none of them; returns their request ids.

        Raises ValidationError.
        """
        first = call.submitted
        now = time.monotonic()
        try:
            request_ids: list[str] = []
            for prompt, own in zip(prompts, self._align(params, count), strict=True):
                request_ids.append(str(self._submit(call, prompt, own, now)))
                if bar is not None:
                    bar.update(1)
            return request_ids
        except BaseException:
            self.abort(call, first)
            raise
        finally:
            if bar is not None:
                bar.close()

    def _submit(self, call: Call, prompt: Rendered, params: SamplingParams, now: float) -> int:
        request_id = self._prompts
        requests = tuple(self._make_requests(prompt.token_ids, params, now))
        job = Job(call, call.submitted, request_id, prompt.text, requests)
        call.submitted += 1
        call.unfinished += 1
        self._prompts += 1
        for request in requests:
            self._jobs[request.request_id] = job  # first, so that after an interrupt no request is unknown
            self._engine.add(request)
        return request_id

    def workload(self, call: Call) -> Workload | None:
        """The lengths of the call's unfinished requests, each up to its limit; None when there are none."""
        requests = [request for job in self._jobs_of(call) for request in job.requests if not request.finished]
        if not requests:
            return None
        longest = self._engine.max_model_len
        rooms = [max(1, longest - len(request.prompt_token_ids)) for request in requests]
        limits = [min(room, r.params.max_tokens or room) for room, r in zip(rooms, requests, strict=True)]
        return Workload([len(request.prompt_token_ids) for request in requests], limits)

    def _jobs_of(self, call: Call) -> list[Job]:
        return list(dict.fromkeys(job for job in self._jobs.values() if job.call is call))

    def results(self, call: Call, bar: GenerationBar) -> Iterator[RequestOutput]:
        """Each output of the call when it is complete; what is unfinished when the caller leaves is aborted."""
        try:
            while call.unfinished or call.ready:
                while call.ready:
                    yield call.ready.popleft()
                if call.unfinished:
                    self.step(call, bar)
        finally:
            self.abort(call)
            bar.close()

    def step(self, call: Call, bar: StepCounter) -> None:
        """Run one step of everything that is under way; what it completes lies in its own call's `ready`."""
        report = next(self._engine.run(), None)
        outputs_before = len(call.ready)
        for request in self._unreported() if report is None else report.finished:
            job = self._jobs.pop(request.request_id)
            job.unfinished -= 1
            if job.unfinished == 0:
                job.call.unfinished -= 1
                job.call.ready.append(make_output(job.request_id, job.index, job.prompt, job.requests, self._tokenizer))
        prompt_tokens, output_tokens = (report.prompt_tokens, report.output_tokens) if report else (0, 0)
        bar.advance(len(call.ready) - outputs_before, prompt_tokens, output_tokens)

    def abort(self, call: Call, first: int = 0) -> None:
        """Drop what is unfinished of the call's prompts from the one with index `first` on, and forget those."""
        dropped = [i for i, job in self._jobs.items() if job.call is call and job.index >= first]
        if dropped:
            self._engine.abort(dropped)
        call.unfinished -= len({self._jobs.pop(request_id) for request_id in dropped})
        call.submitted = first

    def _align(self, params: Params, count: int) -> Iterator[SamplingParams]:
        """The prepared params of each of `count` prompts; equal ones are one object, as a million prompts need."""
        if isinstance(params, SamplingParams):
            return itertools.repeat(self.prepare(params), count)
        if isinstance(params, (str, Mapping)) or not isinstance(params, Sequence):
            raise _not_params(params)
        if len(params) != count:
            raise ValidationError(
                f"The lengths of prompts ({count}) and params ({len(params)}) must be the same.",
                parameter="sampling_params",
                value=len(params),
            )
        return self._prepare_each(params)

    def _prepare_each(self, params: Sequence[Any]) -> Iterator[SamplingParams]:
        known: dict[str, SamplingParams] = {}
        for one in params:
            if not isinstance(one, SamplingParams):
                raise _not_params(one)
            key = repr(one)  # shows every field
            if key not in known:
                known[key] = self.prepare(one)
            yield known[key]

    def _make_requests(self, token_ids: array[int], params: SamplingParams, now: float) -> Iterator[Request]:
        for sample in range(params.n):
            if sample == 1 and params.prompt_logprobs is not None:
                params = params.clone()
                params.prompt_logprobs = None  # the first sample has them for all
            seed = request_seed(params, self._seed, self._prompts, sample)
            yield Request(self._requests, token_ids, params, seed, now)
            self._requests += 1

    def _unreported(self) -> list[Request]:
        """Requests that finished in a step whose report was lost to an interrupt, when the engine has nothing to do."""
        found = [
            request
            for job in dict.fromkeys(self._jobs.values())
            for request in job.requests
            if request.finished and request.request_id in self._jobs
        ]
        assert found, "the engine has nothing to do, but requests are unfinished"
        return found


def _not_params(value: object) -> ValidationError:
    return ValidationError(
        f"sampling_params must be a SamplingParams or a list of them, got {type(value).__name__}.",
        parameter="sampling_params",
        value=value,
    )
