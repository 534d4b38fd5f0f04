"""Accuracy of the performance model: workloads that nothing was fitted to, predicted and then measured.

    python bench/predicted_vs_measured.py --model DIR [DIR ...] [--only 0 5 9] [--repeats 2] [--device emulated:…]\
        [--json FILE] [--plot FILE]

The machine is probed on a few layers of the same model with random weights. Memory of a virtual machine changes its
pace within seconds, so a probe that is over when the run begins describes another machine. Therefore the probe also
goes on during the run, between its steps, whose clock stands still meanwhile, and each job has two predictions: of the
probe before it alone, and of the probe that took turns with it. Neither sees a figure of the run but its length.

With `--device emulated:link=2GB/s,memory=900MB`, which may be several, the jobs are such that weights stream. Between
steps only memory is read there, as a longer pause would let the next step's weights come; the whole probe runs before
and after each run instead. The same steps are simulated one by one: `steps` says by how much all of them together took
longer or shorter than that, and each on average.

Accuracy is 1 - |predicted - measured| / measured of the whole job's seconds, of the medians over --repeats. All
jobs are run once before any is repeated. With --json, runs that the file has already are not run again, so the table
may be made in parts, and be interrupted at any time.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from bench.prediction_table import HEADING, Job, Run, Table, line, plot, summary
from moelens import LLM, SamplingParams
from moelens.bench.machine import cpu_name
from moelens.cost.seconds import CostModel
from moelens.cost.workload import StepShape, Workload
from moelens.devices import CpuDevice, EmulatedDevice, parse_device
from moelens.memory.activations import ActivationPool
from moelens.models.architecture import Architecture
from moelens.offload import host_threads, place_plan
from moelens.ops.native import NativeOps
from moelens.pipeline.report import StepReport
from moelens.pipeline.task import Stage
from moelens.planning.advice import read_model
from moelens.planning.default import MAX_REQUESTS, STEP_TOKENS
from moelens.planning.probe import BLOCK_TOKENS, ProbeBench
from moelens.planning.report import limit_of
from moelens.planning.samples import Read, Sample
from moelens.planning.simulate import Prediction, StepClock, simulate

ROUNDS = 24  # samples of a shape that are remembered
STREAMED_ROUNDS = 4  # where all shapes are sampled about each run: those about the last run, and about this one
TURN_SECONDS = 0.25  # of a run between two turns of the probe
PROBE_SECONDS = 0.08  # of a turn
NEVER_SAMPLED = 7  # but for once in 32,768 tokens: a request with it may end at any time, as far as anybody knows
MANY_EVERY = 16  # turns with a shape of many rows in them

JOBS = (
    Job(1, 16, 512),
    Job(1, 2048, 32),
    Job(2, 512, 128),
    Job(4, 128, 256),
    Job(8, 1024, 16),
    Job(8, 64, 128, kv_tokens=768),
    Job(16, 128, 96, kv_tokens=3072),
    Job(32, 128, 64),
    Job(64, 64, 32, kv_tokens=2560),
    Job(64, 16, 64, kv_tokens=4096),
    Job(256, 16, 16),
    Job(512, 16, 8),
)


STREAMED_JOBS = (Job(64, 64, 8), Job(16, 256, 8), Job(128, 32, 6), Job(4, 512, 8))


class Turns:
    """The probe between a run's steps: called with each step, it samples now and then, and counts what that takes."""

    def __init__(self, bench: ProbeBench, *, samples: bool) -> None:
        """Without `samples` only memory is read."""
        self.samples: list[Sample] = []
        self.steps: list[tuple[list[StepShape], float]] = []  # and what each took
        self._samples = samples
        self.seconds = 0.0
        self.stage_seconds = dict.fromkeys(Stage, 0.0)
        self._bench = bench
        self._few = itertools.cycle(bench.few_rows)
        self._many = itertools.cycle([shape for shape in bench.shapes if shape not in bench.few_rows])
        self._turns = 0
        self._since = 0.0
        self.reads: list[Read] = []  # of memory, each for as many seconds of the run

    def __call__(self, report: StepReport) -> None:
        begin = time.perf_counter()
        for stage, own in report.stage_seconds.items():
            self.stage_seconds[stage] += own
        self.steps.append((list(report.parts), report.seconds))
        self._since += report.seconds
        if self._since >= TURN_SECONDS:
            self.reads.append((self._bench.meter.seconds_per_byte(), self._since))
            self._since = 0.0
            if self._samples:
                self._sample(begin + PROBE_SECONDS)
        self.seconds += time.perf_counter() - begin

    def _sample(self, end: float) -> None:
        self._turns += 1
        if self._turns % MANY_EVERY == 0:
            self.samples.append(self._bench.run(*next(self._many)))
        while time.perf_counter() < end:
            self.samples.append(self._bench.run(*next(self._few)))


class Recent:
    """The latest samples of each shape: those of many rows are rare, and must not be pushed out by those of few."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._of_shape: dict[StepShape, deque[Sample]] = {}

    def extend(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            self._of_shape.setdefault(sample.shape, deque(maxlen=self._rounds)).append(sample)

    def all(self) -> list[Sample]:
        return [sample for several in self._of_shape.values() for sample in several]


class Stand:
    """A model, and what was sampled of the machine lately."""

    def __init__(self, model: str, device_text: str) -> None:
        self.model = model
        self.architecture: Architecture = read_model(model)
        self._device_text = device_text
        self._device = parse_device(device_text)
        self._ops = NativeOps(host_threads(self._device, None), empty=ActivationPool().empty)
        self._streams = not isinstance(self._device, CpuDevice)
        self.bench = ProbeBench(self.architecture, self._ops, self._device if self._streams else None)
        for shape in self.bench.few_rows:  # warms the threads and the allocator up
            self.bench.run(*shape)
        self.samples = Recent(STREAMED_ROUNDS if self._streams else ROUNDS)
        self.samples.extend([*self.bench.round(), *self.bench.round()])

    def run(self, job: Job) -> Run:
        config = self.architecture.config
        about = self.bench.shapes if self._streams else self.bench.few_rows
        recent = [self.bench.run(*shape) for shape in about]
        self.samples.extend(recent)
        kv_tokens = job.kv_tokens or job.requests * (job.prompt_tokens + job.output_tokens + BLOCK_TOKENS)
        llm = LLM(
            self.model,
            device=self._device_text,
            skip_tokenizer_init=True,
            use_tqdm_on_load=False,
            kv_cache_memory_bytes=-(-kv_tokens // BLOCK_TOKENS) * config.kv_bytes_per_token * BLOCK_TOKENS,
            max_model_len=job.prompt_tokens + job.output_tokens,
            max_num_seqs=MAX_REQUESTS,  # given, so that no plan is chosen while the clock runs
            max_num_batched_tokens=STEP_TOKENS[-1],
        )
        reads_before = [(one.read_seconds_per_byte, 1.0) for one in recent]
        _, before = self.predict(llm, job, reads_before)
        turns = Turns(self.bench, samples=not self._streams)
        llm.engine.on_step = turns
        measured = generate(llm, job, config.vocab) - turns.seconds
        self.samples.extend(turns.samples or [self.bench.run(*shape) for shape in about])
        cost, predicted = self.predict(llm, job, turns.reads or reads_before)
        return Run(
            before.seconds,
            predicted.seconds,
            measured,
            predicted.preemptions,
            llm.engine.scheduler.preemptions,
            most_off(predicted, turns.stage_seconds),
            limit_of(cost, predicted),
            *steps_off(StepClock(cost, llm.engine.plan), turns.steps),
        )

    def predict(self, llm: LLM, job: Job, reads: Sequence[Read]) -> tuple[CostModel, Prediction]:
        config, plan, placement = self.architecture.config, llm.engine.plan, None
        if self._streams:
            placement = place_plan(self._device, plan, self.architecture, self._ops)
        hardware = self.bench.spec(self.samples.all(), reads)
        cost = CostModel(config, hardware, load_chunks=plan.load_chunks, placement=placement)
        workload = Workload.even(job.requests, job.prompt_tokens, job.output_tokens)
        return cost, simulate(cost, plan, workload, ends_known=job.ends_known)


def generate(llm: LLM, job: Job, vocab: int) -> float:
    """Seconds of the job."""
    random = np.random.default_rng(0)
    prompts = [{"prompt_token_ids": random.integers(0, vocab, job.prompt_tokens).tolist()} for _ in range(job.requests)]
    stops = [] if job.ends_known else [NEVER_SAMPLED]
    params = SamplingParams(max_tokens=job.output_tokens, ignore_eos=True, stop_token_ids=stops, detokenize=False)
    gc.collect()
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - begin


def steps_off(clock: StepClock, steps: Sequence[tuple[list[StepShape], float]]) -> tuple[float, float]:
    """All steps but the first, executed over simulated, less 1; and the mean size of that of each."""
    pairs = [(clock.seconds(parts), seconds) for parts, seconds in steps][1:]
    if not pairs:
        return 0.0, 0.0
    simulated, executed = (sum(column) for column in zip(*pairs, strict=True))
    return executed / simulated - 1, statistics.fmean(abs(own / expected - 1) for expected, own in pairs)


def most_off(predicted: Prediction, measured: Mapping[Stage, float]) -> str:
    """The stage whose seconds are furthest from what was expected, in seconds."""
    differences = {stage: predicted.stage_seconds[stage] - own for stage, own in measured.items()}
    stage = max(differences, key=lambda one: abs(differences[one]))
    return f"{stage.value} {differences[stage]:+.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, help="checkpoints' folders")
    parser.add_argument("--only", nargs="*", type=int, help="numbers of jobs of each model, the first is 0")
    parser.add_argument("--device", nargs="+", default=["cpu"], help="cpu, or emulated:link=…/s,memory=…")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="results, written after each run; those in it are not run again")
    parser.add_argument("--plot", type=Path)
    found = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_name()}, {NativeOps().threads} threads\n{HEADING}")
    table = Table(found.json)
    for one in table.outcomes:
        print(line(one))
    for repeat, model, device in itertools.product(range(found.repeats), found.model, found.device):
        name, stand = Path(model).name, None
        jobs = STREAMED_JOBS if isinstance(parse_device(device), EmulatedDevice) else JOBS
        for job in [jobs[index] for index in found.only] if found.only else jobs:
            if table.repeats(name, device, job) <= repeat:
                stand = stand or Stand(model, device)
                print(line(table.add(name, device, job, stand.run(job))), flush=True)
    print(summary(table.outcomes))
    if found.plot is not None:
        plot(table.outcomes, found.plot)


if __name__ == "__main__":
    main()
