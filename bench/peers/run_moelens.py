"""A worker that runs workloads on moelens, with its defaults."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from worker import serve_workloads
from workload import Run, Settings, Workload

import moelens
from moelens import LLM, SamplingParams


def load(settings: Settings) -> tuple[dict[str, Any], Callable[[Workload, int], Run]]:
    llm = LLM(settings.model, skip_tokenizer_init=True, num_threads=settings.threads)

    def run(workload: Workload, seed: int) -> Run:
        prompts = [{"prompt_token_ids": ids} for ids in workload.prompts(settings.vocab, seed)]
        params = SamplingParams(temperature=0.0, max_tokens=workload.output_tokens, ignore_eos=True, detokenize=False)
        llm.reset_prefix_cache()
        totals = llm.engine.totals
        prefill, decode = totals.prefill_seconds, totals.decode_seconds
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        assert all(len(out.outputs[0].token_ids) == workload.output_tokens for out in outputs)
        return Run(
            seconds,
            totals.prefill_seconds - prefill,
            totals.decode_seconds - decode,
            [out.outputs[0].token_ids[0] for out in outputs],
        )

    about = {
        "name": "moelens",
        "version": moelens.__version__,
        "weight_bytes": llm.engine.weight_bytes,
        "kv_bytes": llm.engine.kv_bytes,
    }
    return about, run


if __name__ == "__main__":
    serve_workloads(load)
