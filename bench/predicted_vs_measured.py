"""Accuracy of the performance model: workloads that nothing was fitted to, predicted and then measured.

    python bench/predicted_vs_measured.py --model DIR [DIR ...] [--only 0 5 9] [--repeats 3] [--json FILE] [--plot FILE]

The machine is probed before every run, on a few layers of the same model with random weights, and a prediction is made
of the medians of the last three rounds: a machine whose memory wanders by the minute is described as it is then.
Accuracy is 1 - |predicted - measured| / measured of the whole job's seconds; with --repeats, of the medians.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from moelens import LLM, SamplingParams
from moelens.bench.machine import cpu_name
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.models.architecture import Architecture
from moelens.ops.native import NativeOps
from moelens.pipeline.task import Stage
from moelens.planning.advice import read_model
from moelens.planning.probe import BLOCK_TOKENS, ProbeBench, Sample
from moelens.planning.simulate import Prediction, simulate

ROUNDS = 3  # of the probe that a prediction is made of


@dataclass(frozen=True)
class Job:
    """Requests of one prompt and output length; `kv_tokens` is a cache so small that requests are preempted."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    kv_tokens: int | None = None


JOBS = (
    Job(1, 16, 512),
    Job(1, 2048, 32),
    Job(2, 512, 128),
    Job(4, 128, 256),
    Job(8, 1024, 16),
    Job(8, 64, 128, kv_tokens=768),
    Job(16, 256, 64, kv_tokens=2560),
    Job(32, 128, 64),
    Job(64, 64, 32, kv_tokens=2560),
    Job(128, 32, 32, kv_tokens=3072),
    Job(256, 16, 16),
    Job(512, 16, 8),
)


@dataclass(frozen=True)
class Outcome:
    """A job's prediction and measurement, in seconds and preempted requests."""

    model: str
    job: Job
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    preemptions: tuple[int, int]
    worst_stage: str

    @property
    def accuracy(self) -> float:
        measured = statistics.median(self.measured)
        return 1 - abs(statistics.median(self.predicted) - measured) / measured

    @property
    def spread(self) -> float:
        """Of the measurements: the largest over the smallest, less 1."""
        return max(self.measured) / min(self.measured) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, help="checkpoints' folders")
    parser.add_argument("--only", nargs="*", type=int, help=f"of the jobs of each model, 0 to {len(JOBS) - 1}")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    found = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [JOBS[index] for index in found.only] if found.only else list(JOBS)
    print(f"{cpu_name()}, {NativeOps().threads} threads")
    print(
        "model             requests prompt output cache  predicted s  measured s  accuracy  spread  preempted  most off"
    )
    outcomes = []
    for model in found.model:
        outcomes += run_model(model, jobs, found.repeats)
    accuracies = [one.accuracy for one in outcomes]
    print(f"{len(outcomes)} jobs: accuracy {100 * statistics.mean(accuracies):.1f} % on average, the least ", end="")
    print(f"{100 * min(accuracies):.1f} %; {sum(one.preemptions[1] > 0 for one in outcomes)} with preemption")
    if found.json is not None:
        records = [{**asdict(one), "accuracy": one.accuracy} for one in outcomes]
        found.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    if found.plot is not None:
        plot(outcomes, found.plot)


def run_model(model: str, jobs: list[Job], repeats: int) -> list[Outcome]:
    architecture = read_model(model)
    bench = ProbeBench(architecture, NativeOps())
    bench.round()
    rounds: deque[list[Sample]] = deque([bench.round()], maxlen=ROUNDS)
    outcomes = []
    for job in jobs:
        runs = [run_job(model, job, architecture, bench, rounds) for _ in range(repeats)]
        expected, stages = runs[-1][0], runs[-1][2]
        outcome = Outcome(
            model=Path(model).name,
            job=job,
            predicted=tuple(run[0].seconds for run in runs),
            measured=tuple(run[1] for run in runs),
            preemptions=(expected.preemptions, runs[-1][3]),
            worst_stage=worst(expected, stages),
        )
        report(outcome)
        outcomes.append(outcome)
    return outcomes


def run_job(
    model: str, job: Job, architecture: Architecture, bench: ProbeBench, rounds: deque[list[Sample]]
) -> tuple[Prediction, float, dict[str, float], int]:
    """Probe, predict, measure: the prediction, measured seconds, seconds by stage, preempted requests."""
    rounds.append(bench.round())
    cost = CostModel(architecture.config, bench.spec(list(rounds)))
    block_bytes = architecture.config.kv_bytes_per_token * BLOCK_TOKENS
    kv_tokens = job.kv_tokens or job.requests * (job.prompt_tokens + job.output_tokens + BLOCK_TOKENS)
    llm = LLM(
        model,
        skip_tokenizer_init=True,
        use_tqdm_on_load=False,
        kv_cache_memory_bytes=-(-kv_tokens // BLOCK_TOKENS) * block_bytes,
        max_model_len=job.prompt_tokens + job.output_tokens,
    )
    plan = llm.engine.plan
    workload = Workload.even(job.requests, job.prompt_tokens, job.output_tokens)
    expected = simulate(cost, plan, workload)
    random = np.random.default_rng(0)
    vocab = architecture.config.vocab
    prompts = [{"prompt_token_ids": random.integers(0, vocab, job.prompt_tokens).tolist()} for _ in range(job.requests)]
    params = SamplingParams(max_tokens=job.output_tokens, ignore_eos=True, detokenize=False)
    gc.collect()
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    measured = time.perf_counter() - begin
    stages, preempted = dict(llm.engine.totals.stage_seconds), llm.engine.scheduler.preemptions
    del llm
    gc.collect()
    return expected, measured, stages, preempted


def worst(expected: Prediction, measured: dict[str, float]) -> str:
    """The stage whose seconds are furthest from what was expected, in seconds."""
    differences = {stage: expected.stage_seconds[Stage(stage)] - seconds for stage, seconds in measured.items()}
    stage = max(differences, key=lambda one: abs(differences[one]))
    return f"{stage} {differences[stage]:+.2f} s"


def report(one: Outcome) -> None:
    job, predicted, measured = one.job, statistics.median(one.predicted), statistics.median(one.measured)
    sizes = f"{job.requests:8d} {job.prompt_tokens:6d} {job.output_tokens:6d} {job.kv_tokens or 'ample':>5}"
    seconds = f"{predicted:12.2f} {measured:11.2f} {100 * one.accuracy:8.1f} % {100 * one.spread:5.1f} %"
    counts = f"{one.preemptions[0]:4d} /{one.preemptions[1]:4d}"
    print(f"{one.model:17s} {sizes} {seconds} {counts}  {one.worst_stage}", flush=True)


def plot(outcomes: list[Outcome], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 6), layout="constrained")
    for model in dict.fromkeys(one.model for one in outcomes):
        of = [one for one in outcomes if one.model == model]
        x = [statistics.median(one.measured) for one in of]
        axes.plot(x, [statistics.median(one.predicted) for one in of], "o", label=model)
    ends = [min(min(one.measured) for one in outcomes), max(max(one.measured) for one in outcomes)]
    axes.plot(ends, ends, color="grey", label="exact")
    axes.fill_between(ends, [0.85 * end for end in ends], [1.15 * end for end in ends], alpha=0.15, label="± 15 %")
    axes.set(xscale="log", yscale="log", xlabel="measured seconds", ylabel="predicted seconds")
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
