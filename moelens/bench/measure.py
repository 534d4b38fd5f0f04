"""Loads the model, runs the requests and counts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moelens.bench import machine
from moelens.bench.arguments import Options
from moelens.bench.expectation import expect
from moelens.bench.report import Hardware, Measurement
from moelens.bench.workload import BenchRequest, make_requests
from moelens.ops.native import choose_isa
from moelens.sampling_params import SamplingParams

if TYPE_CHECKING:
    from moelens import LLM


def measure(options: Options, make_llm: Callable[..., LLM]) -> tuple[Measurement, Hardware, dict[str, object]]:
    """What the run took, where it ran, and the plan that the library chose as a dict.

    Raises what LLM and its `generate` raise, and ConfigError for a workload that can't be made.
    """
    begin = time.perf_counter()
    llm = make_llm(options.model, seed=options.seed, skip_tokenizer_init=not options.needs_tokenizer, **options.engine)
    load_seconds = time.perf_counter() - begin
    engine = llm.engine
    requests = make_requests(options, engine.vocab, engine.max_model_len)
    if options.num_warmups:
        _generate(llm, requests[: options.num_warmups], options)
        llm.reset_prefix_cache()  # the same prompts follow

    drawn = [path for path in (options.trace, options.timeline) if path is not None]
    if drawn:
        llm.start_timeline()
    before = dataclasses.replace(engine.totals, stage_seconds=dict(engine.totals.stage_seconds))
    preempted, shared = engine.scheduler.preemptions, engine.scheduler.shared_tokens
    begin = time.perf_counter()
    outputs = _generate(llm, requests, options)
    elapsed = time.perf_counter() - begin
    after = engine.totals
    for path in drawn:
        llm.write_timeline(path)

    measurement = Measurement(
        requests=len(requests),
        prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        output_tokens=sum(len(completion.token_ids) for output in outputs for completion in output.outputs),
        elapsed_seconds=elapsed,
        prefill_tokens=after.prompt_tokens - before.prompt_tokens,
        prefill_seconds=after.prefill_seconds - before.prefill_seconds,
        decode_tokens=after.decode_rows - before.decode_rows,
        decode_seconds=after.decode_seconds - before.decode_seconds,
        schedule_seconds=after.schedule_seconds - before.schedule_seconds,
        steps=after.steps - before.steps,
        preemptions=engine.scheduler.preemptions - preempted,
        shared_tokens=engine.scheduler.shared_tokens - shared,
        load_seconds=load_seconds,
        weight_bytes=engine.weight_bytes,
        kv_cache_bytes=engine.kv_bytes,
        peak_rss_bytes=machine.peak_rss_bytes(),
        expectation=expect(
            engine,
            [(len(output.prompt_token_ids), len(one.token_ids)) for output in outputs for one in output.outputs],
            {stage: s - before.stage_seconds.get(stage, 0.0) for stage, s in after.stage_seconds.items()},
        ),
    )
    hardware = Hardware(
        cpu=machine.cpu_name(),
        cores=machine.cpu_cores(),
        memory_bytes=machine.memory_bytes(),
        isa=choose_isa(None),
        threads=engine.plan.threads,
    )
    return measurement, hardware, dataclasses.asdict(engine.plan)


def _generate(llm: LLM, requests: list[BenchRequest], options: Options) -> list[Any]:
    prompts: list[Any] = [
        request.prompt if isinstance(request.prompt, str) else {"prompt_token_ids": request.prompt}
        for request in requests
    ]
    params = [
        SamplingParams(
            n=options.n,
            temperature=options.temperature,
            top_p=1.0,
            ignore_eos=True,
            max_tokens=request.output_tokens,
            detokenize=options.detokenize,
        )
        for request in requests
    ]
    return llm.generate(prompts, params, use_tqdm=True)
