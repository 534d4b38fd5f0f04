"""One run of transformers' static-batch generate: `run_transformers.py MODEL WORKLOAD THREADS OUTPUT`."""

import sys
import time

import torch
import transformers
from workload import Result, Workload, peak_rss_bytes, report, vocab_of


class Clock(transformers.StoppingCriteria):
    """Notes the time of every step and never stops."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def main(model: str, workload_text: str, threads: str, output: str) -> None:
    torch.set_num_threads(int(threads))
    workload = Workload.parse(workload_text)
    begin = time.perf_counter()
    lm = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    load_seconds = time.perf_counter() - begin
    lm.generation_config.eos_token_id = None
    ids = torch.tensor(workload.prompts(vocab_of(model)))
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
    report(
        Result(
            peer="transformers",
            version=f"{transformers.__version__} (torch {torch.__version__})",
            seconds=end - begin,
            load_seconds=load_seconds,
            prefill_seconds=clock.times[0] - begin,
            decode_seconds=end - clock.times[0],
            peak_rss_bytes=peak_rss_bytes(),
            first_tokens=generated[:, workload.prompt_tokens].tolist(),
        ),
        output,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
