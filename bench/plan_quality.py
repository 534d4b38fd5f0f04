"""Plan quality: an exhaustive sweep of plans, each measured, beside the plan that `LLM` chooses and its default.

    python bench/plan_quality.py --model DIR DIR [--layers 2] [--json FILE] [--seconds 110] [--table]

Six workloads, three of each model, whose layers are cut down and have random weights; 43 plans each: 16 to 1024
requests and 128 to 8192 rows in a step. Every plan runs once, in a fixed shuffled order, and the default before every
sixth: a plan's time is told as a multiple of the median of the last three of these, as the speed of this machine's
memory changes by the minute. Plans that differ only in limits which a job does not reach are one plan, told by the
median of their runs. Then the four best, the chosen one and the default run in turn, seven times, and are judged by the
medians of their ratios to the default of the same round. Of six that differ by little the best is the luckiest too, so
the verdict on it is from 31 rounds more, of it and the chosen plan alone, each first in every other round. The
default's slowest round over its fastest is printed too: differences far below it are chance.

The sweep is kept in the JSON file and goes on where it was stopped; --seconds ends a part of it, --table only prints.
The machine is measured first, if it was not yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moelens import LLM, SamplingParams
from moelens.bench.machine import cpu_name
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.memory.activations import ActivationPool
from moelens.ops.native import NativeOps
from moelens.plan import Plan
from moelens.planning.advice import read_model
from moelens.planning.measured import measured_hardware
from moelens.planning.tuning import Room, effect, tune

REQUESTS = (16, 32, 64, 128, 256, 512, 1024)
STEP_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192)
BETWEEN = 6  # plans from one run of the default to the next
FINALISTS = 4
ROUNDS = 7
DUEL_ROUNDS = 31
MEMORY_BYTES = 4 << 30  # for cache and activations


@dataclass(frozen=True)
class Job:
    """Requests of one prompt and output length; `kv_tokens` is a cache too small for all of them."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    kv_tokens: int | None = None


JOBS = (Job(400, 8, 6), Job(24, 256, 8), Job(160, 24, 16, kv_tokens=3072))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, help="folders with a config.json")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("plan_quality.json"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--table", action="store_true")
    found = parser.parse_args()
    torch.set_num_threads(1)
    records: dict[str, Any] = json.loads(found.json.read_text()) if found.json.exists() else {}
    if not found.table:
        end = time.monotonic() + found.seconds
        for model in found.model:
            if not sweep(model, found.layers, records, found.json, end):
                print("stopped; the same command goes on", flush=True)
                break
    table(records)


def plans(base: Plan) -> list[Plan]:
    """All that are swept, in a fixed shuffled order."""
    pairs = [(requests, rows) for requests in REQUESTS for rows in STEP_TOKENS if rows >= requests]
    random.Random(0).shuffle(pairs)
    return [dataclasses.replace(base, max_requests=requests, step_tokens=rows) for requests, rows in pairs]


def sweep(model: str, layers: int, records: dict[str, Any], path: Path, end: float) -> bool:
    """Measure what is not in `records` yet; False when the time is up."""
    overrides = {"num_hidden_layers": layers}
    architecture = read_model(model, overrides)
    hardware = measured_hardware(architecture, NativeOps(empty=ActivationPool().empty))
    for job in JOBS:
        key = f"{Path(model).name}, {layers} layers, {job}"
        record = records.setdefault(key, {"runs": {}, "defaults": [], "finals": {}, "duel": []})
        if is_finished(record):
            continue
        llm = make_llm(model, overrides, job)
        runner = Runner(llm, job)
        room = Room(frozenset(), MEMORY_BYTES, llm.engine.kv_bytes // llm.plan.kv_blocks, has_device=False)
        workload = Workload.even(job.requests, job.prompt_tokens, job.output_tokens)
        cost = CostModel(llm.engine.config, hardware)
        chosen = tune(cost, runner.base, room, workload, measured=True, touched_blocks=0, least_seconds=0.0).plan
        record["chosen"], record["default"] = name(chosen), name(runner.base)
        runner.seconds(runner.base)  # warms up
        for _ in measure(runner, record, chosen):
            path.write_text(json.dumps(records, indent=1))
            if time.monotonic() > end:
                return False
    return True


def make_llm(model: str, overrides: dict[str, int], job: Job) -> LLM:
    block_bytes = read_model(model, overrides).config.kv_bytes_per_token * 32
    tokens = job.kv_tokens or job.requests * -(-(job.prompt_tokens + job.output_tokens) // 32) * 32
    return LLM(
        model,
        load_format="dummy",
        hf_overrides=overrides,
        skip_tokenizer_init=True,
        use_tqdm_on_load=False,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=tokens // 32 * block_bytes,
        max_model_len=job.prompt_tokens + job.output_tokens,
    )


class Runner:
    """Runs a job on one engine under any limits of steps."""

    def __init__(self, llm: LLM, job: Job) -> None:
        self._llm = llm
        self._job = job
        self.base = llm.plan
        draw, ids = random.Random(0), range(3, llm.engine.vocab)
        self._prompts: list[Any] = [
            {"prompt_token_ids": draw.choices(ids, k=job.prompt_tokens)} for _ in range(job.requests)
        ]
        self._params = SamplingParams(max_tokens=job.output_tokens, ignore_eos=True, detokenize=False, temperature=0)
        llm.engine.chooser = None  # the plan is chosen here

    def effect(self, plan: Plan) -> tuple[int, int]:
        """The limits as far as the job reaches them."""
        return effect(plan, self._job.requests, self._job.requests * (self._job.prompt_tokens + 1))

    def seconds(self, plan: Plan) -> float:
        self._llm.engine.adopt(plan)
        begin = time.perf_counter()
        self._llm.generate(self._prompts, self._params, use_tqdm=False)
        return time.perf_counter() - begin


def measure(runner: Runner, record: dict[str, Any], chosen: Plan) -> Iterator[None]:
    """One run at a time, written into `record`: the sweep, then the finals."""
    runs, swept = record["runs"], plans(runner.base)
    for index, plan in enumerate(swept):
        if name(plan) in runs:
            continue
        if index % BETWEEN == 0 or not record["defaults"]:
            record["defaults"].append(runner.seconds(runner.base))
        runs[name(plan)] = runner.seconds(plan) / statistics.median(record["defaults"][-3:])
        yield
    finalists = list(dict.fromkeys((runner.base, chosen, *best_of(runner, runs, swept, chosen))))
    for _ in range(ROUNDS):
        for plan in finalists:
            times = record["finals"].setdefault(name(plan), [])
            if len(times) < ROUNDS:
                times.append(runner.seconds(plan))
                yield
    best = next(plan for plan in finalists if name(plan) == best_name(record))
    while best != chosen and len(record["duel"]) < DUEL_ROUNDS:
        if len(record["duel"]) % 2:
            other, own = runner.seconds(best), runner.seconds(chosen)
        else:
            own, other = runner.seconds(chosen), runner.seconds(best)
        record["duel"].append(own / other)
        yield


def is_finished(record: dict[str, Any]) -> bool:
    """Whether all rounds have been run."""
    if not record["finals"] or any(len(times) < ROUNDS for times in record["finals"].values()):
        return False
    return best_name(record) == record["chosen"] or len(record["duel"]) == DUEL_ROUNDS


def best_name(record: dict[str, Any]) -> str:
    """The fastest of the finals."""
    default = record["finals"][record["default"]]
    return min(record["finals"], key=lambda plan: ratio(record["finals"][plan], default))


def best_of(runner: Runner, runs: dict[str, float], swept: list[Plan], chosen: Plan) -> list[Plan]:
    """The fastest that are neither the chosen one nor the default, one of each effect."""
    alike: dict[tuple[int, int], list[Plan]] = {}
    for plan in swept:
        alike.setdefault(runner.effect(plan), []).append(plan)
    for known in (runner.base, chosen):
        alike.pop(runner.effect(known), None)
    order = sorted(alike.values(), key=lambda plans: statistics.median(runs[name(plan)] for plan in plans))
    return [plans[0] for plans in order[:FINALISTS]]


def name(plan: Plan) -> str:
    return f"{plan.max_requests} requests, {plan.step_tokens} rows"


def table(records: dict[str, Any]) -> None:
    print(f"{cpu_name()}, {NativeOps().threads} threads; / means: medians of the ratios within {ROUNDS} rounds")
    columns = ("workload", "plans", "slowest / default", "default s", "its spread", "best", "chosen")
    verdict = f"chosen / best in {DUEL_ROUNDS} more"
    print("| " + " | ".join((*columns, "best / default", "chosen / best", verdict)) + " |\n" + "| --- " * 10 + "|")
    for key, record in records.items():
        if not is_finished(record):
            print(f"| {key} | {len(record['runs'])} | not finished |")
            continue
        finals, best = record["finals"], best_name(record)
        default, duel = finals[record["default"]], record["duel"] or [1.0]
        print(
            f"| {key} | {len(record['runs'])} | {max(record['runs'].values()):.2f} | {statistics.median(default):.2f} "
            f"| {max(default) / min(default):.2f} | {best} | {record['chosen']} | {ratio(finals[best], default):.3f} "
            f"| {ratio(finals[record['chosen']], finals[best]):.3f} | {statistics.median(duel):.3f} |"
        )


def ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


if __name__ == "__main__":
    main()
