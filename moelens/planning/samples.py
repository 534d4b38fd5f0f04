"""Measured steps, and what they say of a machine whose memory is at times faster and at times slower."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from moelens.cost.workload import StepShape
from moelens.pipeline.task import Stage

TOLD_APART = 0.1  # of the mean: reads that differ by less say nothing about what a faster memory would change
TWO_LEVELS = 1.4  # times as fast as the other
FEWEST_PAIRS = 4  # of samples that are told apart, for their slope to be believed

Read = tuple[float, float]  # seconds per byte of a plain read of memory, and the seconds for which it stands


@dataclass(frozen=True)
class Sample:
    """One measured step: each stage's seconds, per layer where it is of a layer, and those outside, per task.

    `read_seconds_per_byte` is what a plain read of memory took just before and after; `experts_touched` how many
    experts of a layer the rows went to, on average over layers (0: no layer has a router).
    """

    shape: StepShape
    seconds: Mapping[Stage, float]
    outside_seconds: float
    read_seconds_per_byte: float = 0.0
    experts_touched: float = 0.0


def settle(samples: Iterable[Sample], reads: Sequence[Read] = ()) -> list[Sample]:
    """One sample of each shape, as it would be with memory that reads as in `reads` (none: as beside the samples).

    A virtual machine's memory may have two paces, seconds or minutes apart, as its cores lie on one or on two of the
    processor's dies. A median of samples from both is one or the other at random, a mean is at the mercy of whoever
    disturbs. So each shape's samples are first brought to the same pace along a straight line, whose slope is the
    median over pairs (Theil-Sen), and their median is taken then. A single read is noisy, so only one or two levels of
    pace are told apart, and each read stands for its level.
    """
    of_shape: dict[StepShape, list[Sample]] = {}
    for sample in samples:
        of_shape.setdefault(sample.shape, []).append(sample)
    paces = [one.read_seconds_per_byte for several in of_shape.values() for one in several]
    level = levels([*paces, *(pace for pace, _ in reads)])
    weighted = reads or [(pace, 1.0) for pace in paces]
    pace = sum(level(one) * weight for one, weight in weighted) / sum(weight for _, weight in weighted)
    return [_settled(several, pace, level) for several in of_shape.values()]


def levels(paces: Sequence[float]) -> Callable[[float], float]:
    """The level that a pace belongs to: of two, if a tenth of them is faster by far than another, else of one."""
    ascending = sorted(paces)
    fast, slow = ascending[len(ascending) // 10], ascending[-1 - len(ascending) // 10]
    whole = statistics.median(ascending)
    if slow < TWO_LEVELS * fast:
        return lambda pace: whole
    border = math.sqrt(fast * slow)
    lower = statistics.median(pace for pace in ascending if pace <= border)
    upper = statistics.median(pace for pace in ascending if pace > border)
    return lambda pace: lower if pace <= border else upper


def at_pace(paces: Sequence[float], seconds: Sequence[float], pace: float) -> float:
    """Seconds at one pace of memory, from those measured at others: never less than 0 or more than proportional."""
    mean_pace, mean = statistics.fmean(paces), statistics.fmean(seconds)
    slopes = [
        (t1 - t0) / (s1 - s0)
        for (s0, t0), (s1, t1) in itertools.combinations(zip(paces, seconds, strict=True), 2)
        if abs(s1 - s0) > TOLD_APART * mean_pace
    ]
    slope = 0.0
    if len(slopes) >= FEWEST_PAIRS and mean_pace > 0:
        slope = min(max(0.0, statistics.median(slopes)), mean / mean_pace)
    return statistics.median(t + slope * (pace - s) for s, t in zip(paces, seconds, strict=True))


def _settled(several: Sequence[Sample], pace: float, level: Callable[[float], float]) -> Sample:
    paces = [level(one.read_seconds_per_byte) for one in several]
    seconds = {
        stage: max(0.0, at_pace(paces, [one.seconds[stage] for one in several], pace)) for stage in several[0].seconds
    }
    return Sample(
        several[0].shape,
        seconds,
        statistics.median(one.outside_seconds for one in several),
        pace,
        statistics.fmean(one.experts_touched for one in several),
    )
