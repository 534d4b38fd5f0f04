"""Puts a measurement into words (vLLM's three lines, then ours) and into JSON (vLLM's keys, and more)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from moelens.bench import expectation
from moelens.bench.arguments import Options
from moelens.bench.expectation import Expectation


@dataclass(frozen=True)
class Measurement:
    """Counts and times of one run; warm-ups and loading are in none but `load_seconds`.

    `prefill_tokens` are rows computed for prompts, with what preemption made us compute again and without the
    `shared_tokens` that were taken over from prompts that begin alike; `decode_tokens` are rows computed for one new
    token each. A step's seconds are split between the two by its rows, so where steps mix both
    (most do) the split is a convention; `elapsed_seconds` also has what lies between steps.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    elapsed_seconds: float
    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float
    schedule_seconds: float
    steps: int
    preemptions: int
    shared_tokens: int
    load_seconds: float
    weight_bytes: int
    kv_cache_bytes: int
    peak_rss_bytes: int
    expectation: Expectation | None = None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.elapsed_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.elapsed_seconds

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.elapsed_seconds

    @property
    def prefill_tokens_per_second(self) -> float:
        return _rate(self.prefill_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        return _rate(self.decode_tokens, self.decode_seconds)


@dataclass(frozen=True)
class Hardware:
    """Where it ran; `isa` names the kernels that were chosen."""

    cpu: str
    cores: int
    memory_bytes: int
    isa: str
    threads: int


def to_text(m: Measurement, hardware: Hardware, versions: dict[str, str]) -> str:
    """The lines that are printed; the first three are exactly those of `vllm bench throughput`."""
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join(
        [
            f"Throughput: {m.requests_per_second:.2f} requests/s, {m.tokens_per_second:.2f} total tokens/s, "
            f"{m.output_tokens_per_second:.2f} output tokens/s",
            f"Total num prompt tokens:  {m.prompt_tokens}",
            f"Total num output tokens:  {m.output_tokens}",
            f"Prefill: {m.prefill_tokens_per_second:.2f} tokens/s ({m.prefill_tokens} in {m.prefill_seconds:.2f} s)",
            f"Decode: {m.decode_tokens_per_second:.2f} tokens/s ({m.decode_tokens} in {m.decode_seconds:.2f} s)",
            f"Steps: {m.steps}, of whose time {100 * _rate(m.schedule_seconds, m.elapsed_seconds):.2f} % scheduling; "
            f"preemptions: {m.preemptions}; prompt tokens shared: {m.shared_tokens}",
            expectation.to_text(m.expectation, m.tokens, m.elapsed_seconds),
            f"Peak RSS: {_size(m.peak_rss_bytes)} (weights {_size(m.weight_bytes)}, "
            f"cache {_size(m.kv_cache_bytes)} reserved)",
            f"Load: {m.load_seconds:.2f} s",
            f"CPU: {hardware.cpu}, {hardware.cores} cores, {_size(hardware.memory_bytes)}; "
            f"{hardware.isa} kernels on {hardware.threads} threads",
            f"Versions: {named}",
        ]
    )


def to_json(
    m: Measurement, hardware: Hardware, versions: dict[str, str], options: Options, plan: dict[str, object]
) -> dict[str, object]:
    """The report as one object; the first five keys are those of vLLM's."""
    given = dataclasses.asdict(options)
    given |= given.pop("engine")
    asked = {
        name: value if value is None or isinstance(value, int | float | str) else str(value)
        for name, value in given.items()
    }
    return {
        "elapsed_time": m.elapsed_seconds,
        "num_requests": m.requests,
        "total_num_tokens": m.tokens,
        "requests_per_second": m.requests_per_second,
        "tokens_per_second": m.tokens_per_second,
        "total_prompt_tokens": m.prompt_tokens,
        "total_output_tokens": m.output_tokens,
        "output_tokens_per_second": m.output_tokens_per_second,
        "prefill_tokens": m.prefill_tokens,
        "prefill_seconds": m.prefill_seconds,
        "prefill_tokens_per_second": m.prefill_tokens_per_second,
        "decode_tokens": m.decode_tokens,
        "decode_seconds": m.decode_seconds,
        "decode_tokens_per_second": m.decode_tokens_per_second,
        "schedule_seconds": m.schedule_seconds,
        "steps": m.steps,
        "preemptions": m.preemptions,
        "shared_tokens": m.shared_tokens,
        "predicted_seconds": m.expectation and m.expectation.seconds,
        "predicted_tokens_per_second": m.expectation and m.tokens / m.expectation.seconds,
        "bottleneck": m.expectation and m.expectation.limit,
        "load_seconds": m.load_seconds,
        "weight_bytes": m.weight_bytes,
        "kv_cache_bytes": m.kv_cache_bytes,
        "peak_rss_bytes": m.peak_rss_bytes,
        "hardware": dataclasses.asdict(hardware),
        "config": asked,
        "plan": plan,
        "versions": versions,
    }


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"
