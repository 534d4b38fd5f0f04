"""What the engine counts, as named metrics and in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moelens.outputs import Metric
from moelens.pipeline.task import Resource, Stage

if TYPE_CHECKING:
    from moelens.engine import Engine, EngineTotals

PREFIX = "moelens:"


def engine_metrics(engine: Engine) -> list[Metric]:
    """Requests by state, tokens, steps and their seconds, the cache and preemptions."""
    totals, scheduler, plan = engine.totals, engine.scheduler, engine.plan
    used = 1.0 - scheduler.free_blocks / plan.kv_blocks
    metrics = [
        _gauge("num_requests_running", scheduler.running, "Requests that hold blocks of the cache."),
        _gauge("num_requests_waiting", scheduler.waiting, "Requests that wait for a place in the cache."),
        _counter("num_requests_finished", totals.finished_requests, "Requests that came to an end."),
        _counter("prompt_tokens", totals.prompt_tokens, "Rows of prompts computed, again after a preemption."),
        _counter("generation_tokens", totals.output_tokens, "Tokens picked."),
        _gauge("kv_cache_usage_perc", used, "Share of the cache's blocks in use; 1 is all of them."),
        _gauge("kv_cache_blocks", plan.kv_blocks, "Blocks of the cache."),
        _counter("num_preemptions", scheduler.preemptions, "Requests that gave up their blocks to older ones."),
        _counter("prefix_cache_hits", scheduler.shared_tokens, "Prompt tokens taken over from earlier prompts."),
        _counter("steps", totals.steps, "Passes over the model."),
        _counter("decode_rows", totals.decode_rows, "Rows that extended a request by one token."),
        _counter("prefill_seconds", totals.prefill_seconds, "Seconds of steps, the share of prompts' rows."),
        _counter("decode_seconds", totals.decode_seconds, "Seconds of steps, the share of decode rows."),
        _counter("constraint_seconds", engine.constraint_seconds, "Seconds of steps that grammars took."),
        _counter("schedule_seconds", totals.schedule_seconds, "Seconds of steps that went into scheduling."),
    ]
    for stage, seconds in totals.stage_seconds.items():
        metrics.append(_counter(f"{stage.replace(' ', '_')}_seconds", seconds, f"Seconds of the stage {stage!r}."))
    if totals.expected_seconds is not None:
        description = "Seconds that the steps are expected to take on this machine as it was measured."
        metrics.append(_counter("expected_seconds", totals.expected_seconds, description))
    return metrics + _utilisation(totals)


def _utilisation(totals: EngineTotals) -> list[Metric]:
    """Each lane's share of the steps' time, over all steps so far."""
    steps = totals.prefill_seconds + totals.decode_seconds
    busy = dict.fromkeys(Resource, 0.0)
    for stage, seconds in totals.stage_seconds.items():
        busy[Stage(stage).resource] += seconds
    return [
        _gauge(
            f"{lane.value.replace(' ', '_')}_utilisation_perc",
            seconds / steps if steps else 0.0,
            f"Share of the steps' time in which the lane {lane.value!r} worked; 1 is all of it.",
        )
        for lane, seconds in busy.items()
    ]


def prometheus_text(metrics: Iterable[Metric]) -> str:
    """The text exposition format, version 0.0.4; counters' names end in _total there."""
    lines: list[str] = []
    for metric in metrics:
        name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
        if metric.help:
            lines.append(f"# HELP {name} {_escape(metric.help)}")
        lines.append(f"# TYPE {name} {metric.kind}")
        lines.append(f"{name} {metric.value!r}")
    return "".join(f"{line}\n" for line in lines)


def _counter(name: str, value: float, description: str) -> Metric:
    return Metric(PREFIX + name, value, "counter", description)


def _gauge(name: str, value: float, description: str) -> Metric:
    return Metric(PREFIX + name, value, "gauge", description)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
