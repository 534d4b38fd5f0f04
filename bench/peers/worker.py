"""The worker's side: loads one model, says so, and answers one line of JSON with one line of JSON until input ends.

Standard output is for answers alone: whatever else is printed there, by libraries or by their children, goes to
standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from workload import Run, Settings, Workload

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def serve(load: Callable[[dict[str, Any]], tuple[dict[str, Any], Answer]]) -> None:
    """Answer requests; `load` takes the settings (the first line) and gives what to say of itself and how to answer."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.set_inheritable(answers.fileno(), False)
        os.dup2(2, 1)
        settings = json.loads(sys.stdin.readline())
        begin = time.perf_counter()
        about, answer = load(settings)
        about["load_seconds"] = time.perf_counter() - begin
        print(json.dumps(about), file=answers, flush=True)
        for line in iter(sys.stdin.readline, ""):
            print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def serve_workloads(load: Callable[[Settings], tuple[dict[str, Any], Callable[[Workload, int], Run]]]) -> None:
    """Answer workloads; `load` gives what to say of itself and how to run a workload with prompts of a seed."""

    def load_model(values: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
        about, run = load(Settings(**values))
        return about, lambda request: asdict(run(Workload.parse(request["workload"]), request["seed"]))

    serve(load_model)


def in_two_runs(generate: Callable[[Workload], tuple[float, list[int]]], workload: Workload) -> Run:
    """The whole workload, then its prompts asking for one token: what that takes is called prefill, the rest decode.

    `generate` gives seconds and first tokens.
    """
    seconds, first_tokens = generate(workload)
    prefill_seconds, _ = generate(workload.prefill_only)
    return Run(seconds, prefill_seconds, seconds - prefill_seconds, first_tokens)
