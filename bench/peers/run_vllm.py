"""A worker that runs workloads on vLLM's CPU backend, with AMD's zentorch where the environment has it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from worker import in_two_runs, serve_workloads
from workload import Run, Settings, Workload

BATCHED_TOKENS = 8192


def load(settings: Settings) -> tuple[dict[str, Any], Callable[[Workload, int], Run]]:
    import vllm
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    llm = LLM(
        model=settings.model,
        dtype=settings.vllm_dtype,
        max_model_len=max(1024, settings.max_model_tokens),
        enforce_eager=settings.eager,
        max_num_seqs=settings.max_requests,
        max_num_batched_tokens=BATCHED_TOKENS,
        enable_prefix_caching=False,
        disable_log_stats=True,
        gpu_memory_utilization=0.6,  # else it refuses to start unless nearly all memory is free
    )

    def run(workload: Workload, seed: int) -> Run:
        prompts = [{"prompt_token_ids": ids} for ids in workload.prompts(settings.vocab, seed)]

        def generate(part: Workload) -> tuple[float, list[int]]:
            params = SamplingParams(temperature=0, max_tokens=part.output_tokens, ignore_eos=True, detokenize=False)
            begin = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - begin
            assert all(len(out.outputs[0].token_ids) == part.output_tokens for out in outputs)
            return seconds, [out.outputs[0].token_ids[0] for out in outputs]

        return in_two_runs(generate, workload)

    zentorch = getattr(current_platform, "is_zen_cpu", lambda: False)()
    name = f"vllm{'+zentorch' if zentorch else ''} {settings.vllm_dtype} {'eager' if settings.eager else 'compiled'}"
    return {"name": name, "version": vllm.__version__}, run


if __name__ == "__main__":  # vLLM starts processes that import this file
    serve_workloads(load)
