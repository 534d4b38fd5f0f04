"""What became of the predictions of jobs: kept in a file, printed as a table, drawn."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """Requests of one prompt and output length; `kv_tokens` is a cache so small that requests are preempted, for which
    their ends must not be known."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    kv_tokens: int | None = None

    @property
    def ends_known(self) -> bool:
        return self.kv_tokens is None


@dataclass(frozen=True)
class Run:
    """One repeat of a job, in seconds and preempted requests.

    `before` was predicted by the probe before the run, `predicted` by the one that took turns with it.
    `steps_longer` is how much longer all steps took than when simulated one by one, `steps_off` the mean size of that
    for each, both as shares.
    """

    before: float
    predicted: float
    measured: float
    expected_preemptions: int
    preemptions: int
    most_off: str
    limit: str
    steps_longer: float
    steps_off: float


@dataclass(frozen=True)
class Outcome:
    """A job on a device and its repeats."""

    model: str
    device: str
    job: Job
    runs: tuple[Run, ...] = ()

    @property
    def predicted(self) -> float:
        return statistics.median(run.predicted for run in self.runs)

    @property
    def measured(self) -> float:
        return statistics.median(run.measured for run in self.runs)

    @property
    def accuracy(self) -> float:
        return 1 - abs(self.predicted - self.measured) / self.measured

    @property
    def accuracy_before(self) -> float:
        before = statistics.median(run.before for run in self.runs)
        return 1 - abs(before - self.measured) / self.measured

    @property
    def spread(self) -> float:
        """Of the measurements: the largest over the smallest, less 1."""
        return max(run.measured for run in self.runs) / min(run.measured for run in self.runs) - 1


class Table:
    """Outcomes, written to a file after each run if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._outcomes: dict[tuple[str, str, Job], Outcome] = {}
        if path is not None and path.exists():
            for record in json.loads(path.read_text(encoding="utf-8")):
                self._put(_outcome(record))

    def repeats(self, model: str, device: str, job: Job) -> int:
        """How often a job has been run."""
        return len(self._of(model, device, job).runs)

    def add(self, model: str, device: str, job: Job, run: Run) -> Outcome:
        """A job's outcome with one more run."""
        before = self._of(model, device, job)
        outcome = replace(before, runs=(*before.runs, run))
        self._put(outcome)
        if self._path is not None:
            records = [asdict(one) for one in self._outcomes.values()]
            self._path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        return outcome

    @property
    def outcomes(self) -> list[Outcome]:
        return list(self._outcomes.values())

    def _of(self, model: str, device: str, job: Job) -> Outcome:
        return self._outcomes.get((model, device, job)) or Outcome(model, device, job)

    def _put(self, outcome: Outcome) -> None:
        self._outcomes[outcome.model, outcome.device, outcome.job] = outcome


def _outcome(record: Mapping[str, Any]) -> Outcome:
    runs = tuple(Run(**run) for run in record["runs"])
    return Outcome(record["model"], record["device"], Job(**record["job"]), runs)


HEADING = (
    "| model | device | requests | prompt, output tokens | cache tokens | predicted s | measured s | accuracy | by the "
    "probe before | own spread | preempted, expected | limit | most off | "
    "steps: all, each |\n" + "| --- " * 14 + "|"
)


def line(one: Outcome) -> str:
    """An outcome as a line of the table."""
    job, last = one.job, one.runs[-1]
    spread = f"{100 * one.spread:.1f} %" if len(one.runs) > 1 else "-"
    cells = (
        *(one.model, one.device, job.requests, f"{job.prompt_tokens}, {job.output_tokens}", job.kv_tokens or "ample"),
        *(f"{one.predicted:.2f}", f"{one.measured:.2f}", f"{100 * one.accuracy:.1f} %"),
        *(f"{100 * one.accuracy_before:.1f} %", spread, f"{last.preemptions}, {last.expected_preemptions}"),
        *(last.limit, last.most_off, f"{100 * last.steps_longer:+.1f} %, {100 * last.steps_off:.1f} %"),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def summary(outcomes: Sequence[Outcome]) -> str:
    """Means and extremes."""
    lines = []
    for name, accuracies in (
        ("by the probe in turn with the run", [one.accuracy for one in outcomes]),
        ("by the probe before it", [one.accuracy_before for one in outcomes]),
    ):
        mean, least = 100 * statistics.mean(accuracies), 100 * min(accuracies)
        lines.append(f"{len(outcomes)} jobs, {name}: accuracy {mean:.1f} % on average, the least {least:.1f} %")
    preempted = sum(one.runs[-1].preemptions > 0 for one in outcomes)
    spreads = [one.spread for one in outcomes if len(one.runs) > 1] or [0.0]
    lines.append(
        f"{preempted} with preemption; own spread of jobs that were repeated {100 * statistics.mean(spreads):.1f} % on "
        f"average, {100 * max(spreads):.1f} % at most"
    )
    return "\n".join(lines)


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Predicted over measured seconds of each job."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 6), layout="constrained")
    for series in dict.fromkeys((one.model, one.device) for one in outcomes):
        of = [one for one in outcomes if (one.model, one.device) == series]
        axes.plot([one.measured for one in of], [one.predicted for one in of], "o", label=", ".join(series))
    ends = [min(one.measured for one in outcomes), max(one.measured for one in outcomes)]
    axes.plot(ends, ends, color="grey", label="exact")
    axes.fill_between(ends, [0.85 * end for end in ends], [1.15 * end for end in ends], alpha=0.15, label="± 15 %")
    axes.set(xscale="log", yscale="log", xlabel="measured seconds", ylabel="predicted seconds")
    axes.legend()
    figure.savefig(path, dpi=90)
