"""A worker that runs workloads on transformers' static-batch generate (sdpa, its default experts)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from worker import serve_workloads
from workload import Run, Settings, Workload


class Clock(transformers.StoppingCriteria):
    """Notes the time of the first step and never stops."""

    first: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        self.first = self.first or time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def load(settings: Settings) -> tuple[dict[str, Any], Callable[[Workload, int], Run]]:
    torch.set_num_threads(settings.threads)
    lm = transformers.AutoModelForCausalLM.from_pretrained(
        settings.model, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    lm.generation_config.eos_token_id = None

    def run(workload: Workload, seed: int) -> Run:
        ids = torch.tensor(workload.prompts(settings.vocab, seed))
        clock = Clock()
        with torch.inference_mode():
            begin = time.perf_counter()
            generated = lm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=workload.output_tokens,
                min_new_tokens=workload.output_tokens,
                do_sample=False,
                pad_token_id=1,
                stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )
            end = time.perf_counter()
        assert generated.shape == (workload.requests, workload.prompt_tokens + workload.output_tokens)
        assert clock.first is not None
        return Run(end - begin, clock.first - begin, end - clock.first, generated[:, workload.prompt_tokens].tolist())

    return {"name": "transformers", "version": f"{transformers.__version__} (torch {torch.__version__})"}, run


if __name__ == "__main__":
    serve_workloads(load)
