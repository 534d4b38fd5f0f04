"""The bench's measuring and its report, with a model that only counts."""

import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from moelens.bench import machine
from moelens.bench.arguments import parse_arguments
from moelens.bench.measure import measure
from moelens.bench.report import Hardware, Measurement, to_json, to_text
from moelens.ops.native import choose_isa
from moelens.plan import Plan

MEASUREMENT = Measurement(
    requests=10,
    prompt_tokens=5014,
    output_tokens=1500,
    elapsed_seconds=2.0,
    prefill_tokens=6000,
    prefill_seconds=0.5,
    decode_tokens=1490,
    decode_seconds=1.25,
    schedule_seconds=0.02,
    steps=150,
    preemptions=3,
    shared_tokens=7,
    load_seconds=1.5,
    weight_bytes=2**27,
    kv_cache_bytes=2**29,
    peak_rss_bytes=2**31,
)
HARDWARE = Hardware(cpu="A CPU", cores=2, memory_bytes=24 * 2**30, isa="avx2", threads=2)


def test_the_first_three_lines_are_vllms() -> None:
    assert to_text(MEASUREMENT, HARDWARE, {"moelens": "0"}).splitlines()[:3] == [
        "Throughput: 5.00 requests/s, 3257.00 total tokens/s, 750.00 output tokens/s",
        "Total num prompt tokens:  5014",
        "Total num output tokens:  1500",
    ]


def test_the_rest_tells_prefill_decode_memory_and_machine() -> None:
    text = to_text(MEASUREMENT, HARDWARE, {"moelens": "0.1", "torch": "2.6"})
    assert "Prefill: 12000.00 tokens/s (6000 in 0.50 s)" in text
    assert "Decode: 1192.00 tokens/s (1490 in 1.25 s)" in text
    assert "Peak RSS: 2.00 GiB (weights 128.00 MiB, cache 0.50 GiB reserved)" in text
    assert "CPU: A CPU, 2 cores, 24.00 GiB; avx2 kernels on 2 threads" in text
    assert "Versions: moelens 0.1, torch 2.6" in text


def test_json_begins_with_vllms_keys_and_adds_ours() -> None:
    options = parse_arguments(["--model", "m", "--input-len", "8", "--output-json", "x"])
    report = to_json(MEASUREMENT, HARDWARE, {"moelens": "0"}, options, {"parts": 1})
    assert list(report)[:5] == [
        "elapsed_time",
        "num_requests",
        "total_num_tokens",
        "requests_per_second",
        "tokens_per_second",
    ]
    assert report["total_num_tokens"] == report["total_prompt_tokens"] + report["total_output_tokens"] == 6514
    assert report["config"]["output_json"] == "x" and report["config"]["num_prompts"] == 1000
    assert report["hardware"]["isa"] == "avx2" and report["plan"] == {"parts": 1}


@dataclass
class Totals:
    steps: int = 0
    prompt_tokens: int = 0
    decode_rows: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    schedule_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class CountingLLM:
    """Answers each request at once with as many tokens as it asks for."""

    model: str
    arguments: dict[str, Any]
    calls: list[tuple[list[Any], list[Any]] | str] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = Plan(step_tokens=64, max_requests=8, kv_blocks=4, threads=2)
        self.engine = SimpleNamespace(
            cost=None,  # so that nothing is predicted
            totals=Totals(),
            vocab=100,
            max_model_len=1000,
            plan=plan,
            weight_bytes=5,
            kv_bytes=6,
            scheduler=SimpleNamespace(preemptions=0, shared_tokens=0),
        )

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return True

    def generate(self, prompts: list[Any], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        self.calls.append((prompts, params))
        totals = self.engine.totals
        totals.steps += 1
        totals.prompt_tokens += sum(len(prompt["prompt_token_ids"]) for prompt in prompts)
        totals.prefill_seconds += 0.25
        self.engine.scheduler.preemptions += 1
        self.engine.scheduler.shared_tokens += 5
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[SimpleNamespace(token_ids=[1] * one.max_tokens) for _ in range(one.n)],
            )
            for prompt, one in zip(prompts, params, strict=True)
        ]


def run(*flags: str) -> tuple[CountingLLM, Measurement]:
    made: list[CountingLLM] = []

    def make_llm(model: str, **arguments: Any) -> CountingLLM:
        made.append(CountingLLM(model, arguments))
        return made[0]

    measurement, hardware, plan = measure(parse_arguments(["--model", "m", *flags]), make_llm)  # type: ignore[arg-type]
    assert hardware.isa == choose_isa(None) and hardware.threads == plan["threads"] == 2
    return made[0], measurement


def test_tokens_are_counted_once_per_prompt_and_for_every_text() -> None:
    _, measurement = run("--input-len", "8", "--output-len", "4", "--num-prompts", "3", "--n", "2")
    assert (measurement.requests, measurement.prompt_tokens, measurement.output_tokens) == (3, 24, 24)
    assert measurement.peak_rss_bytes > 2**20 and measurement.elapsed_seconds > 0


def test_warm_ups_run_and_are_neither_counted_nor_remembered() -> None:
    llm, measurement = run("--input-len", "8", "--num-prompts", "3", "--num-warmups", "2")
    assert [len(call[0]) if call != "reset_prefix_cache" else call for call in llm.calls] == [
        2,
        "reset_prefix_cache",
        3,
    ]
    assert (measurement.prefill_tokens, measurement.prefill_seconds) == (24, 0.25)
    assert (measurement.steps, measurement.preemptions, measurement.shared_tokens) == (1, 1, 5)


def test_requests_sample_as_vllms_bench_does() -> None:
    llm, _ = run("--input-len", "8", "--output-len", "4", "--num-prompts", "1")
    (params,) = llm.calls[0][1]
    assert (params.temperature, params.top_p, params.ignore_eos, params.max_tokens) == (1.0, 1.0, True, 4)


def test_what_was_not_asked_is_left_to_the_library() -> None:
    llm, _ = run("--input-len", "8", "--num-prompts", "1", "--load-format", "dummy", "--kv-cache-memory-bytes", "1MiB")
    assert llm.model == "m"
    assert llm.arguments == {
        "load_format": "dummy",
        "dtype": "auto",
        "device": "auto",
        "seed": 0,
        "skip_tokenizer_init": True,
        "kv_cache_memory_bytes": 2**20,
    }


def test_the_machine_is_described() -> None:
    assert machine.cpu_name() and machine.cpu_cores() >= 1
    assert machine.memory_bytes() > machine.peak_rss_bytes() > 2**20


def test_versions_name_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.importlib.metadata, "version", lambda name: f"{name}-version")
    versions = machine.versions()
    assert versions["torch"] == "torch-version" and re.fullmatch(r"\d+\.\d+\.\d+", versions["python"])
