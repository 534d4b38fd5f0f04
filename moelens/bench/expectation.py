"""What the performance model expects of a run that was measured, and where the two part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moelens.cost.workload import Workload
from moelens.planning.predict import predict
from moelens.planning.report import limit_of

if TYPE_CHECKING:
    from moelens.engine import Engine

WARN = 0.15  # of the measured seconds, from which on a report names the stage that is off


@dataclass(frozen=True)
class Expectation:
    """Seconds of the whole run, what limits it, and the stage furthest off: its expected and its measured seconds."""

    seconds: float
    limit: str
    stage: str
    stage_expected_seconds: float
    stage_measured_seconds: float


def expect(
    engine: Engine, lengths: Sequence[tuple[int, int]], stage_seconds: Mapping[str, float]
) -> Expectation | None:
    """Of requests of the given prompt and output tokens; None where this machine was not measured for such layers."""
    cost = engine.cost
    if cost is None or not lengths:
        return None
    workload = Workload([prompt for prompt, _ in lengths], [max(1, output) for _, output in lengths])
    job = predict(cost, engine.plan, workload)
    expected = {stage.value: seconds for stage, seconds in job.stage_seconds.items()}
    worst = max(expected, key=lambda stage: abs(expected[stage] - stage_seconds.get(stage, 0.0)))
    return Expectation(job.seconds, limit_of(cost, job), worst, expected[worst], stage_seconds.get(worst, 0.0))


def to_text(expectation: Expectation | None, tokens: int, elapsed_seconds: float) -> str:
    """A line or two of a report."""
    if expectation is None:
        return "Predicted: nothing, as this machine was not measured yet (python -m moelens plan measures it)"
    text = (
        f"Predicted: {tokens / expectation.seconds:.2f} total tokens/s, measured {tokens / elapsed_seconds:.2f}, "
        f"ratio {elapsed_seconds / expectation.seconds:.3f}; the limit is {expectation.limit}"
    )
    if abs(expectation.seconds - elapsed_seconds) <= WARN * elapsed_seconds:
        return text
    return (
        f"{text}\nWarning: these part by over 15 %, most in {expectation.stage}: "
        f"{expectation.stage_expected_seconds:.2f} s expected, {expectation.stage_measured_seconds:.2f} s measured. "
        "Was the machine busy, now or when it was measured (python -m moelens plan --refresh)?"
    )
