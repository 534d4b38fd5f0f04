"""One op's speed: calls in turn, timed in rounds, each beside the ceilings measured just before it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.ceilings import Ceiling, CeilingMeter, seconds

ROUND_SECONDS = 0.2  # what a round lasts at least


@dataclass(frozen=True)
class Call:
    """What is timed: `calls` are run one after another, each on data of its own where the data is to be cold.

    `flops` and `nbytes` are of one call: operations, and bytes that memory has to give or take at least. `of_memory`
    says that the share is of the plain read, whatever the operations.
    """

    op: str
    rows: int
    calls: Sequence[Callable[[], object]]
    flops: float
    nbytes: float
    detail: str = ""
    of_memory: bool = False


@dataclass(frozen=True)
class Measurement:
    """Medians over rounds; `shares` are of the roofline of each round's ceilings."""

    call: Call
    seconds: float
    ceiling: Ceiling
    shares: Sequence[float]
    versus: dict[str, float] = field(default_factory=dict)  # ours is faster than that by this factor

    @property
    def share(self) -> float:
        return statistics.median(self.shares)

    @property
    def of(self) -> str:
        """Which ceiling binds."""
        reading = self.call.nbytes / self.ceiling.bytes_per_second
        return "GB/s" if self.call.of_memory or reading > self.call.flops / self.ceiling.flops_per_second else "GFLOP/s"

    def line(self) -> str:
        """As the report prints it."""
        of = self.ceiling.bytes_per_second if self.of == "GB/s" else self.ceiling.flops_per_second
        speeds = (
            f"{self.call.flops / self.seconds / 1e9:7.1f} GFLOP/s {self.call.nbytes / self.seconds / 1e9:7.2f} GB/s"
        )
        versus = "".join(f", {factor:.2f} x {name}" for name, factor in self.versus.items())
        return (
            f"{self.call.op:19s} {self.call.detail:18s} T={self.call.rows:5d} {self.seconds * 1e3:9.3f} ms {speeds} "
            f"{self.share:6.1%} (best {max(self.shares):.1%}) of {of / 1e9:.1f} {self.of}{versus}"
        )


def least_seconds(call: Call, ceiling: Ceiling) -> float:
    """What a call takes at least."""
    return ceiling.least_seconds(0.0 if call.of_memory else call.flops, call.nbytes)


def repeats_of(calls: Sequence[Callable[[], object]]) -> int:
    """How often all the calls make up a round, once they are warm."""
    for call in calls:
        call()
    return max(1, int(ROUND_SECONDS / max(1e-9, mean_seconds(calls, 1) * len(calls))))


def mean_seconds(calls: Sequence[Callable[[], object]], repeats: int) -> float:
    """Of one call."""
    return seconds(lambda: [call() for _ in range(repeats) for call in calls]) / repeats / len(calls)


def measure(
    call: Call, meter: CeilingMeter, rounds: int, rivals: dict[str, Callable[[], float]] | None = None
) -> Measurement:
    """Time a call, in turn with `rivals`, each of which gives the seconds of one call of its own."""
    repeats = repeats_of(call.calls)
    times, ceilings, shares = [], [], []
    factors: dict[str, list[float]] = {name: [] for name in rivals or {}}
    for _ in range(rounds):
        ceilings.append(meter.measure_settled() if rivals else meter.measure())
        times.append(mean_seconds(call.calls, repeats))
        shares.append(least_seconds(call, ceilings[-1]) / times[-1])
        for name, rival in (rivals or {}).items():
            factors[name].append(rival() / times[-1])
    ceiling = Ceiling(
        statistics.median(one.flops_per_second for one in ceilings),
        statistics.median(one.bytes_per_second for one in ceilings),
    )
    versus = {name: statistics.median(values) for name, values in factors.items()}
    return Measurement(call, statistics.median(times), ceiling, shares, versus)
