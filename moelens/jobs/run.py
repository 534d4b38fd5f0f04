"""The loop of a job: keep the model full, write what each step completes, stop when asked to."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from moelens.jobs.answers import answer_line, fault_line, line_number
from moelens.jobs.feed import Feed
from moelens.jobs.parse import LineParser
from moelens.jobs.records import Ask, Fault, Line
from moelens.jobs.reporting import MetricsFile, Progress, ProgressLog, job_metrics
from moelens.jobs.results import Numbers, ResultFile
from moelens.jobs.signals import StopSignals
from moelens.jobs.sources import Source
from moelens.jobs.survey import Survey
from moelens.llm import LLM
from moelens.outputs import Metric

SYNC_SECONDS = 5.0  # a power failure costs the results of about so long, a killed process none
_FAULTS_AT_ONCE = 256  # that are written together


@dataclass(frozen=True)
class Work:
    """What is left of a job: its lines but for those that are done."""

    source: Source
    parser: LineParser
    survey: Survey
    done: Numbers


def run_work(
    work: Work,
    llm: LLM,
    results: ResultFile,
    progress: Progress,
    *,
    window: int,
    metrics_file: MetricsFile | None,
    stop: StopSignals,
) -> bool:
    """Run all that is left, with at most about `window` texts in the model; False when it was stopped before the end.

    Raises JobError when the results can't be written, and what the engine raises; what is written stays.
    """
    feed = Feed(llm)
    loop = _Loop(pending(work), feed, results, progress, window)
    log = ProgressLog(progress)

    def metrics() -> list[Metric]:
        return llm.get_metrics() + job_metrics(progress)

    synced = time.monotonic()
    try:
        while stop.received is None and loop.top_up(stop) and stop.received is None:
            loop.step()
            log.update(feed.prompt_tokens, feed.output_tokens)
            if metrics_file is not None:
                metrics_file.update(metrics)
            if time.monotonic() - synced >= SYNC_SECONDS:
                results.sync()
                synced = time.monotonic()
        loop.flush()
        results.sync()
        log.update(feed.prompt_tokens, feed.output_tokens, last=True)
        if metrics_file is not None:
            metrics_file.update(metrics, last=True)
        return loop.exhausted and feed.asks == 0
    finally:
        feed.close()


def run_lines(lines: Iterable[Line], parser: LineParser, llm: LLM, *, window: int) -> list[bytes]:
    """The results of some lines, in their order, with at most about `window` texts in the model.

    Raises what the engine raises.
    """
    feed, results = Feed(llm), _Collected()
    loop = _Loop((parser.parse(line) for line in lines), feed, results, Progress(0, 0), window)
    try:
        while loop.top_up(StopSignals()):
            loop.step()
        loop.flush()
    finally:
        feed.close()
    return sorted(results.lines, key=line_number)


def pending(work: Work) -> Iterator[Ask | Fault]:
    """What each line asks for that is not done, in the order of the input."""
    for line in work.source.lines():
        if line.number not in work.done:
            yield work.survey.check(work.parser.parse(line))


class Results(Protocol):
    """Where results go; see `ResultFile`."""

    def append(self, lines: Iterable[bytes]) -> None: ...


class _Collected:
    """Results that are kept in memory."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def append(self, lines: Iterable[bytes]) -> None:
        self.lines += lines


class _Loop:
    """Lines on their way from the input through the model to the results."""

    def __init__(
        self, asked: Iterator[Ask | Fault], feed: Feed, results: Results, progress: Progress, window: int
    ) -> None:
        self._asked = asked
        self._feed = feed
        self._results = results
        self._progress = progress
        self._window = window
        self._faults: list[bytes] = []
        self._has_plan = False
        self.exhausted = False

    def top_up(self, stop: StopSignals) -> bool:
        """Fill the model up to the window; False when nothing is in it."""
        while not self.exhausted and self._feed.samples < self._window and stop.received is None:
            asked = next(self._asked, None)
            if asked is None:
                self.exhausted = True
                break
            fault = asked if isinstance(asked, Fault) else self._feed.add(asked)
            if fault is not None:
                self._faults.append(fault_line(fault))
                if len(self._faults) == _FAULTS_AT_ONCE:
                    self.flush()
        return self._feed.asks > 0

    def step(self) -> None:
        """Run a step and write what it completed; the first lines stand for all."""
        if not self._has_plan:
            self._feed.choose_plan()
            self._has_plan = True
        done = self._feed.step()
        lines = [answer_line(ask, output) for ask, output in done]
        failed = sum(any(one.finish_reason == "error" for one in output.outputs) for _, output in done)
        self._write(lines, failed)
        self.flush()

    def flush(self) -> None:
        """Write the faults that were found."""
        faults, self._faults = self._faults, []
        self._write(faults, len(faults))

    def _write(self, lines: list[bytes], failed: int) -> None:
        if lines:
            self._results.append(lines)
            self._progress.answered += len(lines)
            self._progress.failed += failed
