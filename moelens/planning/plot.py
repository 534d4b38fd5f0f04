"""Pictures of a plan: throughput over cache memory, lanes over the job, and the roofline of each stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from moelens.cost.work import stage_work
from moelens.cost.workload import StepShape
from moelens.errors import ConfigError
from moelens.pipeline.task import Resource, Stage
from moelens.planning.predict import predict
from moelens.planning.report import Outlook, bound_of

POINTS = 24  # of the cache's memory
STAGES = (Stage.BEFORE_ATTENTION, Stage.ATTEND_DECODES, Stage.ATTEND_PREFILLS, Stage.AFTER_ATTENTION, Stage.LOGITS)


def draw(outlook: Outlook, path: Path) -> None:
    """Write three pictures side by side; raises ConfigError when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib, or leave --plot out.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    figure.suptitle(f"{outlook.model} on {outlook.choice.cost.hardware.name}")
    draw_memory(outlook, axes[0])
    draw_lanes(outlook, axes[1])
    draw_rooflines(outlook, axes[2])
    figure.savefig(path, dpi=75)
    pyplot.close(figure)


def draw_memory(outlook: Outlook, axes: Any) -> None:
    """Tokens per second over the cache's memory: bound and prediction, with the turning point."""
    choice, work = outlook.choice, outlook.workload
    plan, config = choice.plan, choice.cost.config
    held = plan.kv_tokens * config.kv_bytes_per_token
    largest = 2 * max(held, min(outlook.bound.turning_kv_bytes, 8.0 * held))
    sizes, most, expected = [], [], []
    for point in range(1, POINTS + 1):
        blocks = max(
            -(-work.longest_tokens // plan.block_tokens),
            round(largest * point / POINTS / config.kv_bytes_per_token / plan.block_tokens),
        )
        kv_bytes = blocks * plan.block_tokens * config.kv_bytes_per_token
        sizes.append(kv_bytes / 1e9)
        most.append(bound_of(choice, work, kv_bytes).tokens_per_second)
        resized = dataclasses.replace(plan, kv_blocks=blocks)
        expected.append(predict(choice.cost, resized, work, most_rows=0).tokens_per_second)
    axes.plot(sizes, most, label="bound (stage 1)")
    axes.plot(sizes, expected, label="prediction (stage 2, closed form)")
    axes.plot([held / 1e9], [outlook.prediction.tokens_per_second], "o", label="this plan")
    if outlook.bound.turning_kv_bytes <= largest:
        axes.axvline(outlook.bound.turning_kv_bytes / 1e9, linestyle=":", color="grey", label="turning point")
    axes.set(xlabel="key/value cache, GB", ylabel="prompt and output tokens/s", ylim=(0, None))
    axes.legend()


def draw_lanes(outlook: Outlook, axes: Any) -> None:
    """What share of the time each resource is at work, over the job."""
    moments = outlook.prediction.moments
    times = [moment.begin_seconds for moment in moments] + [moments[-1].end_seconds]
    for resource in Resource:
        shares = [100 * moment.busy[resource] for moment in moments]
        axes.stairs(shares, times, label=resource.value)
    axes.set(xlabel="seconds of the job", ylabel="at work, %", ylim=(0, 105))
    axes.legend()


def draw_rooflines(outlook: Outlook, axes: Any) -> None:
    """Operations per second that each stage reaches, over its intensity, from one row to many."""
    cost = outlook.choice.cost
    context = round(outlook.workload.mean_prompt_tokens + outlook.workload.mean_output_tokens / 2)
    for stage in STAGES:
        intensities, rates = [], []
        for power in range(15):
            rows = 1 << power
            shape = StepShape(rows, rows * context, rows, rows * context, rows)
            work = stage_work(stage, cost.config, 0, shape, cost.routing)
            intensities.append(work.intensity)
            rates.append(work.flops / cost.demand(stage, 0, shape).seconds)
        axes.plot(intensities, rates, ".-", label=stage.value)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="operations per second")
    axes.legend()
