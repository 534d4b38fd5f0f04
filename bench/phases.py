"""A whole mixed job on an emulated device, beside the same job with prefill and decode in phases of their own.

    python -m bench.phases --model FOLDER --schedule mixed
    python -m bench.phases --model FOLDER --schedule phases --step-tokens 512

The phases are a double that only this bench has: the schedule of systems that keep the two apart. As many prompts as
may run at once are computed, in steps without decodes; then all decode, in steps without prompts, until the last ends.
All requests want equally many tokens, so that no place stands empty meanwhile, which is the best case for phases.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from moelens import LLM, SamplingParams
from moelens.engine import Engine
from moelens.pipeline.task import Resource
from moelens.plan import Plan
from moelens.schedule.batch import Chunk
from moelens.schedule.scheduler import Scheduler

BLOCK_TOKENS = 32


class PhaseScheduler(Scheduler):
    """Computes prompts until as many requests run as may, then decodes until none does."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.plan, engine._finish, engine._pricing)
        self._at_once = engine.plan.max_requests
        self._prefills = True

    def next_chunks(self) -> list[list[Chunk]]:
        if not self._running:
            self._prefills = True
        elif all(running.pending == 1 for running in self._running):
            self._prefills = self._prefills and bool(self._waiting) and self.running < self._at_once
        return super().next_chunks()

    def _decode_chunks(self) -> tuple[list[Chunk], bool]:
        return ([], False) if self._prefills else super()._decode_chunks()

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        if self._prefills:
            super()._admit(chunks, budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder with a config.json; the weights are random")
    parser.add_argument("--schedule", choices=["mixed", "phases"], required=True)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--at-once", type=int, default=32, help="requests that run at the same time")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=16)
    parser.add_argument("--step-tokens", type=int, default=160)
    parser.add_argument("--device", default="emulated:link=4GB/s,memory=1200MB")
    options = parser.parse_args()
    blocks = options.requests * -(-(options.prompt_tokens + options.output_tokens) // BLOCK_TOKENS)
    plan = Plan(options.step_tokens, options.at_once, blocks, parts=3, choose_parts=True, load_chunks=16)
    llm = LLM(options.model, device=options.device, plan=plan, load_format="dummy", skip_tokenizer_init=True)
    if options.schedule == "phases":
        llm.engine._scheduler = PhaseScheduler(llm.engine)
    random = np.random.default_rng(0)
    prompts = [
        {"prompt_token_ids": random.integers(0, llm.engine.vocab, options.prompt_tokens).tolist()}
        for _ in range(options.requests)
    ]
    params = SamplingParams(max_tokens=options.output_tokens, temperature=0, ignore_eos=True, detokenize=False)
    llm.generate(prompts[:2], SamplingParams(max_tokens=1, ignore_eos=True, detokenize=False), use_tqdm=False)
    llm.start_timeline()
    steps, begin = llm.engine.totals.steps, time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    timeline = llm.engine.recorded_timeline
    assert timeline is not None
    result = {
        "schedule": options.schedule,
        "seconds": seconds,
        "steps": llm.engine.totals.steps - steps,
        "tokens per second": sum(len(o.prompt_token_ids) + len(o.outputs[0].token_ids) for o in outputs) / seconds,
        "busy": {r.value: timeline.busy_seconds(r) / seconds for r in Resource},
        "tokens": hash(tuple(tuple(output.outputs[0].token_ids) for output in outputs)),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
