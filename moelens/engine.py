"""Runs requests to their end: schedule, execute, commit, step after step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from moelens.cost.routing import RoutingLoad
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape, Workload
from moelens.machine.machine import Machine
from moelens.memory.device import DeviceMemory, SharedMemory
from moelens.memory.kv_cache import KVCache
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Architecture
from moelens.ops.interface import Ops
from moelens.ops.sampling import SampledToken, Sampler
from moelens.pipeline.actions import Actions
from moelens.pipeline.executor import Executor
from moelens.pipeline.report import StepReport
from moelens.pipeline.routes import RouteCounts
from moelens.pipeline.step import StepTasks
from moelens.pipeline.timeline import ExpectedStep, Timeline
from moelens.plan import Plan
from moelens.request import Request
from moelens.schedule.batch import LogitRow
from moelens.schedule.scheduler import Scheduler, Step
from moelens.schedule.split import Pricing
from moelens.stopping import Stopping


class Chooser(Protocol):
    """Chooses limits of steps for requests that are about to run; see `moelens.choosing`."""

    @property
    def reasons(self) -> tuple[str, ...]: ...
    def choose(self, workload: Workload) -> None: ...


@dataclass
class EngineTotals:
    """Sums over all steps so far. A step's seconds are split between prefill and decode by its rows."""

    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    decode_rows: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    schedule_seconds: float = 0.0
    finished_requests: int = 0
    expected_seconds: float | None = None  # by the performance model, where it knows the machine
    stage_seconds: dict[str, float] = field(default_factory=dict)

    def add(self, report: StepReport, schedule_seconds: float) -> None:
        """Count one step."""
        rows = report.prompt_tokens + report.decode_rows
        self.steps += 1
        self.prompt_tokens += report.prompt_tokens
        self.output_tokens += report.output_tokens
        self.decode_rows += report.decode_rows
        self.prefill_seconds += report.seconds * report.prompt_tokens / rows
        self.decode_seconds += report.seconds * report.decode_rows / rows
        self.schedule_seconds += schedule_seconds
        self.finished_requests += len(report.finished)
        if report.expected is not None:
            self.expected_seconds = (self.expected_seconds or 0.0) + report.expected.seconds
        for stage, seconds in report.stage_seconds.items():
            self.stage_seconds[stage.value] = self.stage_seconds.get(stage.value, 0.0) + seconds


class Engine:
    """A loaded model, its cache and its scheduler.

    `run` may be left at any step and called again: requests stay where they are until they finish or are aborted.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: WeightStore,
        ops: Ops,
        machine: Machine,
        plan: Plan,
        stopping: Stopping,
        device: DeviceMemory | None = None,
        pricing: Pricing | None = None,
    ) -> None:
        """`ops` are the host's; `device` is None where host and device share one memory. `pricing` is of steps that
        are cut into parts."""
        self.config = architecture.config
        self.plan = plan
        self.totals = EngineTotals()
        self.on_step: Callable[[StepReport], None] | None = None
        self.chooser: Chooser | None = None
        self.cost: CostModel | None = None  # of this machine, if it was measured before
        self.expect_step: Callable[[Sequence[StepShape]], ExpectedStep] | None = None  # by its parts
        self.has_device = device is not None and not isinstance(device, SharedMemory)
        self.last_timeline = Timeline()  # of the last step
        self.recorded_timeline: Timeline | None = None  # of all steps since somebody asked for it
        self.max_model_len = stopping.max_model_len
        self.eos_token_ids = stopping.eos_token_ids
        self._architecture = architecture
        self._weights = weights
        self._ops = ops
        self._cache = KVCache(self.config, ops, blocks=plan.kv_blocks, block_tokens=plan.block_tokens)
        self._device = device or SharedMemory(weights, ops, self.config)
        self._executor = Executor(machine)
        self._step_tasks = StepTasks(plan)
        self._routes = RouteCounts(self.config)
        self._sampler = Sampler(
            ops, vocab=self.config.vocab, eos_token_ids=stopping.eos_token_ids, threads=plan.threads
        )
        self._stopping = stopping
        self._pricing = pricing
        self._scheduler = Scheduler(plan, self._finish, pricing)

    @property
    def vocab(self) -> int:
        """Number of token ids."""
        return self.config.vocab

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self._weights.nbytes

    @property
    def disk_bytes_per_second(self) -> float | None:
        """At what rate experts on disk were found to be read; None where all are in memory."""
        return self._weights.read_bytes_per_second

    @property
    def kv_bytes(self) -> int:
        """Bytes reserved for the key/value cache."""
        return self._cache.nbytes

    @property
    def constraint_seconds(self) -> float:
        """Time that grammars have taken so far."""
        return self._sampler.constraint_seconds

    @property
    def routing(self) -> RoutingLoad:
        """How rows were shared out among experts so far; evenly, until enough of them were counted."""
        return self._routes.load()

    @property
    def scheduler(self) -> Scheduler:
        """For its counts: waiting, running, preemptions, free blocks."""
        return self._scheduler

    def adopt(self, plan: Plan) -> None:
        """Go on with other limits of steps, from the next step on; all that was laid out in memory stays."""
        self.plan = plan
        self._step_tasks = StepTasks(plan)
        self._scheduler.adopt(plan)

    def add(self, request: Request) -> None:
        """Queue a request; raises ValidationError when the cache could never hold it."""
        self._scheduler.add(request)

    def abort(self, request_ids: Iterable[int]) -> list[Request]:
        """Drop unfinished requests; returns those that were found, with finish_reason "abort"."""
        return self._scheduler.abort(request_ids)

    def run(self) -> Iterator[StepReport]:
        """One report per step, until no request is unfinished."""
        while True:
            begin = time.perf_counter()
            with _single_torch_thread(), torch.inference_mode():
                step = self._scheduler.next_step()
                if step is None:
                    return
                scheduled = time.perf_counter()
                tokens, timeline = self._execute(step)
                executed = time.perf_counter()
                finished = self._scheduler.commit(step, tokens)
            end = time.perf_counter()
            self.last_timeline = timeline
            if self.recorded_timeline is not None:
                self.recorded_timeline.spans += timeline.spans
            parts, stage_seconds = [batch.shape for batch in step.parts], timeline.stage_seconds()
            expected = None if self.expect_step is None else self.expect_step(parts)
            report = StepReport(parts, finished, len(tokens), end - begin, stage_seconds, expected)
            if self._pricing is not None:
                self._pricing.observe(parts, stage_seconds, self.routing)
            if self.on_step is not None:
                self.on_step(report)
            self.totals.add(report, scheduled - begin + end - executed)
            yield report

    def _execute(self, step: Step) -> tuple[dict[int, int], Timeline]:
        """Run a step; returns the picked tokens by request id."""
        picked: dict[int, int] = {}

        def use_logits(logits: torch.Tensor, rows: Sequence[LogitRow]) -> None:
            self._pick(logits, rows, picked)

        actions = Actions(step.parts, self._architecture, self._device, self._cache, self._ops, use_logits)
        actions.on_routes = self._routes.count
        shapes = [batch.shape for batch in step.parts]
        tasks = self._step_tasks(shapes, self._device.begin_step(sum(shapes, StepShape())))
        try:
            timeline = self._executor.run(tasks, actions, [batch.rows for batch in step.parts])
        except BaseException:
            self._routes.forget_step()
            raise
        finally:
            actions.release()
        self._routes.end_step()
        return picked, timeline

    def _pick(self, logits: torch.Tensor, rows: Sequence[LogitRow], picked: dict[int, int]) -> None:
        for index, row in enumerate(rows):
            if row.prompt_position is not None:
                self._sampler.add_prompt_logprobs(logits[index], row.request, row.prompt_position)
        chosen = [index for index, row in enumerate(rows) if row.prompt_position is None]
        if not chosen:
            return
        requests = [rows[index].request for index in chosen]
        wanted = logits if len(chosen) == len(rows) else logits[torch.tensor(chosen)]
        found = self._sampler.sample(wanted, requests)
        now = time.monotonic()
        for request, sampled in zip(requests, found, strict=True):
            picked[request.request_id] = sampled.token_id
            self._record(request, sampled, now)

    def _record(self, request: Request, sampled: SampledToken, now: float) -> None:
        request.first_token_time = request.first_token_time or now
        request.last_token_time = now
        if sampled.error is not None:
            request.finish_reason = "error"
            request.stop_reason = sampled.error
        elif sampled.logprobs is not None:
            request.logprobs = request.logprobs or []
            request.logprobs.append(sampled.logprobs)
            request.cumulative_logprob += sampled.logprobs[sampled.token_id].logprob

    def _finish(self, request: Request) -> bool:
        finish = self._stopping.check(request)
        if finish is None:
            return False
        request.finish_reason, request.stop_reason = finish.reason, finish.stop_reason
        return True


@contextlib.contextmanager
def _single_torch_thread() -> Iterator[None]:
    """Keep torch's own thread pool out of the way: the kernels' team is the one pool that computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
