"""One run of moelens: `run_moelens.py MODEL WORKLOAD THREADS OUTPUT`."""

import sys
import time

from workload import Result, Workload, peak_rss_bytes, report, vocab_of

import moelens
from moelens import LLM, SamplingParams


def main(model: str, workload_text: str, threads: str, output: str) -> None:
    workload = Workload.parse(workload_text)
    begin = time.perf_counter()
    llm = LLM(model, skip_tokenizer_init=True, num_threads=int(threads))
    load_seconds = time.perf_counter() - begin
    prompts = [{"prompt_token_ids": ids} for ids in workload.prompts(vocab_of(model))]
    params = SamplingParams(temperature=0.0, max_tokens=workload.output_tokens, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    end = time.perf_counter()
    assert all(len(out.outputs[0].token_ids) == workload.output_tokens for out in outputs)
    totals = llm.engine.totals
    report(
        Result(
            peer="moelens",
            version=moelens.__version__,
            seconds=end - begin,
            load_seconds=load_seconds,
            prefill_seconds=totals.prefill_seconds,
            decode_seconds=totals.decode_seconds,
            peak_rss_bytes=peak_rss_bytes(),
            first_tokens=[out.outputs[0].token_ids[0] for out in outputs],
        ),
        output,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
