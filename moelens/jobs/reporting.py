"""What a running job tells: a line of progress every few seconds, and a file of metrics for Prometheus."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from moelens.errors import JobError
from moelens.metrics import PREFIX, prometheus_text
from moelens.outputs import Metric

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0


@dataclass
class Progress:
    """Lines of a job: all, done before this run, done in it, and of all that are done how many failed."""

    total: int
    before: int
    answered: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        """Lines that have their result."""
        return self.before + self.answered


class ProgressLog:
    """Logs a line every PROGRESS_SECONDS, of the form that vLLM's run-batch prints."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._begin = self._shown = clock()

    def update(self, prompt_tokens: int, output_tokens: int, last: bool = False) -> None:
        """Say how far the job is, when it is time or the `last` time; tokens are counted from the beginning."""
        now = self._clock()
        if now - self._shown < PROGRESS_SECONDS and not last:
            return
        self._shown = now
        progress, seconds = self._progress, max(now - self._begin, 1e-9)
        rate = progress.answered / seconds
        left = _clock_face((progress.total - progress.done) / rate) if rate else "?"
        logger.info(
            "Running batch: %3d%% Completed | %d/%d [%s<%s, %.2freq/s, input: %.2f toks/s, output: %.2f toks/s]%s",
            100 * progress.done // max(progress.total, 1),
            progress.done,
            progress.total,
            _clock_face(seconds),
            left,
            rate,
            prompt_tokens / seconds,
            output_tokens / seconds,
            f" {progress.failed} failed" if progress.failed else "",
        )


class MetricsFile:
    """A file in Prometheus' text format, written anew every few seconds; a reader sees a whole one at any time."""

    def __init__(self, path: Path, interval_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._written: float | None = None
        self._warned = False

    def update(self, metrics: Callable[[], Iterable[Metric]], last: bool = False) -> None:
        """Write the file, when it is time or the `last` time.

        Raises JobError when it can't be written the first time; later a warning is all, as the job matters more.
        """
        now = self._clock()
        if self._written is not None and now - self._written < self._interval_seconds and not last:
            return
        unfinished = self._path.with_name(f".{self._path.name}.unfinished")
        try:
            unfinished.write_text(prometheus_text(metrics()), encoding="utf-8")
            unfinished.replace(self._path)
        except OSError as error:
            if self._written is None:
                raise JobError(f"metrics file {str(self._path)!r} can't be written: {error.strerror}.") from error
            if not self._warned:
                logger.warning("metrics file %s can't be written any more: %s", self._path, error.strerror)
                self._warned = True
        self._written = now


def job_metrics(progress: Progress) -> list[Metric]:
    """The lines of a job by state."""
    return [
        Metric(f"{PREFIX}batch_lines", progress.total, "gauge", "Lines of the input."),
        Metric(f"{PREFIX}batch_lines_done", progress.done, "gauge", "Lines that have their result."),
        Metric(f"{PREFIX}batch_lines_failed", progress.failed, "gauge", "Lines whose result is an error."),
    ]


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
