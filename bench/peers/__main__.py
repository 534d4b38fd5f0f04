"""Runs moelens and its peers on the same work, in turn, each in a process of its own, and prints a table.

    python -m bench.peers --model MODEL [MODEL ...] [--workload 64x128x64 …] [--peers moelens vllm …] [--repeats 5]
        [--python vllm=ENV/bin/python] [--gguf FILE …] [--eager] [--vllm-dtype float32] [--json FILE]

Each process loads a model once and then waits for work, so that peers alternate: every round of a workload runs each
of them once, on prompts of its own, and measures before and after each run what the machine can do (multiplications
in registers, a plain read of memory). Tokens per second count prompt and generated tokens over the whole run without
loading. Figures are medians over the rounds; shares are of the roofline by the ceilings around that run; ratios are
medians of the peer's seconds over moelens' in the same round. Of vLLM, prefill is a second run asking for one token
and decode the difference. Peak RSS is that of the peer's largest process since it was started. All peers of a model
are in memory at once: what doesn't fit is for another run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.ceilings import Ceiling, CeilingMeter
from bench.peers.process import PEERS, Worker, has_module, start_peer
from bench.peers.roofline import least
from bench.peers.table import Cell, Round, header, row
from bench.peers.workload import Run, Settings, Workload
from moelens.checkpoint.source import read_config
from moelens.models.config import ModelConfig
from moelens.models.registry import build
from moelens.ops.native import choose_isa

WARM_UP = "4x16x4"  # what every peer runs once, not counted
WORKLOADS = ("64x128x64", "32x512x128", "256x64x32")
MOST_IDLE_CORES = 0.05  # more by peers that wait, and the run's figures are not theirs alone


def run_round(name: str, workers: Mapping[str, Worker], work: Workload, seed: int) -> tuple[Run, float]:
    """One run of one peer, and the cores that the others kept busy meanwhile."""
    others = [worker for other, worker in workers.items() if other != name]
    begin, busy = time.perf_counter(), sum(worker.cpu_seconds() for worker in others)
    request = {"workload": f"{work.requests}x{work.prompt_tokens}x{work.output_tokens}", "seed": seed}
    run = Run(**workers[name].ask(request))
    idle_cores = (sum(worker.cpu_seconds() for worker in others) - busy) / (time.perf_counter() - begin)
    if idle_cores > MOST_IDLE_CORES:
        print(f"while {name} ran, the others kept {idle_cores:.2f} cores busy", file=sys.stderr, flush=True)
    return run, idle_cores


def measure_cells(
    model: str, config: ModelConfig, workers: Mapping[str, Worker], work: Workload, repeats: int, meter: CeilingMeter
) -> dict[str, Cell]:
    """All peers on one workload, in turn."""
    rounds: dict[str, list[Round]] = {name: [] for name in workers}
    before = meter.measure_settled()
    for seed in range(repeats):
        for name in workers:
            run, idle_cores = run_round(name, workers, work, seed)
            after = meter.measure_settled()
            ceiling = before.mean(after)
            peak = workers[name].peak_rss_bytes()
            bounds = least(config, work, ceiling), least(config, work, ceiling, every_row=False)
            rounds[name].append(Round(run, *bounds, ceiling, peak, idle_cores))
            print(f"{model} {work} round {seed} {name}: {run.seconds:.2f} s", file=sys.stderr, flush=True)
            before = after
    return {name: Cell(model, work, workers[name].about, rounds[name]) for name in workers}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, help="checkpoint folders")
    parser.add_argument("--workload", nargs="+", default=list(WORKLOADS), help="requests x prompt x output tokens")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=PYTHON", help="interpreters of peers")
    parser.add_argument("--gguf", nargs="+", default=[], help="for llama.cpp: a file for each model, in order")
    parser.add_argument("--eager", action="store_true", help="run vLLM without torch.compile")
    parser.add_argument(
        "--vllm-dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="what vLLM computes in: float32 is faster where the processor has no instructions for bfloat16",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write every run here")
    arguments = parser.parse_args(argv)
    pairs = [text.partition("=") for text in arguments.python]
    unknown = [name for name, _, python in pairs if name not in PEERS or not python]
    if unknown:
        parser.error(f"--python takes PEER=PYTHON with PEER one of {', '.join(PEERS)}, got {', '.join(unknown)}")
    arguments.python = {name: python for name, _, python in pairs}
    if arguments.gguf and len(arguments.gguf) != len(arguments.model):
        parser.error(f"--gguf takes one file for each of the {len(arguments.model)} models, got {len(arguments.gguf)}")
    try:
        arguments.workload = [Workload.parse(text) for text in arguments.workload]
    except ValueError as error:
        parser.error(str(error))
    for name in ("repeats", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    missing = [model for model in arguments.model if not (Path(model) / "config.json").is_file()]
    if missing:
        parser.error(f"--model takes folders with a checkpoint, but there is no config.json in {', '.join(missing)}")
    return arguments


def choose_peers(arguments: argparse.Namespace) -> list[str]:
    """Those that are installed; of the others it is said how to get them."""
    chosen = []
    for name in dict.fromkeys(arguments.peers):
        python = arguments.python.get(name, sys.executable)
        if not has_module(python, PEERS[name].module):
            print(f"{name} is left out, {python} doesn't have it: {PEERS[name].install}", file=sys.stderr)
        elif name == "llama.cpp" and not arguments.gguf:
            print(f"{name} is left out, it needs a GGUF file: {PEERS[name].install}", file=sys.stderr)
        else:
            chosen.append(name)
    return chosen


def settings_of(arguments: argparse.Namespace, index: int) -> Settings:
    """What each peer is told of the `index`-th model."""
    return Settings(
        arguments.model[index],
        arguments.threads,
        max(work.prompt_tokens + work.output_tokens for work in arguments.workload),
        max(work.requests for work in arguments.workload),
        arguments.eager,
        arguments.gguf[index] if arguments.gguf else None,
        arguments.vllm_dtype,
    )


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    peers = choose_peers(arguments)
    meter = CeilingMeter(choose_isa(None), arguments.threads)
    cells: list[Cell] = []
    print(header(), flush=True)
    for index, model in enumerate(arguments.model):
        config = build(read_config(Path(model))).config
        settings = settings_of(arguments, index)
        with contextlib.ExitStack() as stack:
            workers = {}
            for name in peers:
                python = arguments.python.get(name, sys.executable)
                workers[name] = stack.enter_context(start_peer(name, python, asdict(settings)))
                workers[name].ask({"workload": WARM_UP, "seed": 0})
            for work in arguments.workload:
                found = measure_cells(Path(model).name, config, workers, work, arguments.repeats, meter)
                for name in peers:
                    print(row(found[name], found.get("moelens")), flush=True)
                cells += found.values()
                if arguments.json:  # after every cell: a run of an hour may be broken off
                    arguments.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1))
    if cells:
        print(f"\n{describe_ceilings([one.ceiling for cell in cells for one in cell.rounds])}")


def describe_ceilings(ceilings: Sequence[Ceiling]) -> str:
    """One line: medians and extremes."""
    flops = [one.flops_per_second / 1e9 for one in ceilings]
    reads = [one.bytes_per_second / 1e9 for one in ceilings]
    return (
        f"Ceilings: {statistics.median(flops):.0f} GFLOP/s ({min(flops):.0f} to {max(flops):.0f}), "
        f"{statistics.median(reads):.1f} GB/s ({min(reads):.1f} to {max(reads):.1f})."
    )


if __name__ == "__main__":
    main()
