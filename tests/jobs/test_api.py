"""`moelens.run_batch` and the command, over an engine without a model."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from job_folder import Folder, requests

import moelens
from moelens.cli.main import main
from moelens.errors import JobError
from moelens.jobs.reporting import MetricsFile, Progress, ProgressLog, job_metrics
from moelens.jobs.signals import StopSignals
from moelens.outputs import Metric
from moelens.request import Request


@pytest.fixture
def quiet() -> Iterator[None]:
    """Put logging back as it was before a command set it up."""
    logger = logging.getLogger("moelens")
    level = logger.level
    yield
    logger.setLevel(level)


def test_the_function(folder: Folder, tmp_path: Path) -> None:
    folder.write([{"messages": [{"role": "user", "content": "a"}]}, {"prompt": "b", "ignore_eos": True}])
    report = moelens.run_batch(
        str(folder.input),
        folder.output,
        model=folder.model,
        seed=3,
        sampling_defaults={"max_tokens": 2, "ignore_eos": True},
        served_model_name="name",
        ordered=True,
        metrics_file=tmp_path / "metrics.prom",
    )
    assert report == moelens.JobReport(lines=2, done_before=0, done=2, failed=0, finished=True, stopped_by=None)
    assert [result["usage"]["completion_tokens"] for result in folder.results().values()] == [2, 2]
    assert "moelens:batch_lines_done 2\n" in (tmp_path / "metrics.prom").read_text()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as in a terminal: what starts the tests in the background may have had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_raised_when_all_is_written(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(requests(30))
    step = FakeEngine._advance

    def advance(self: FakeEngine, request: Request) -> bool:
        if self.totals.steps == 15:
            self.totals.steps += 1000
            signal.raise_signal(signal.SIGINT)
        return step(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "_advance", advance)
        with pytest.raises(KeyboardInterrupt):
            moelens.run_batch(folder.input, folder.output, model=folder.model)
    done = len(folder.results())
    assert 0 < done < 30
    assert moelens.run_batch(folder.input, folder.output, model=folder.model).done_before == done


def test_the_command(folder: Folder, quiet: None, caplog: pytest.LogCaptureFixture) -> None:
    folder.write(requests(4))
    flags = ["-i", str(folder.input), "-o", str(folder.output), "--model", str(folder.model)]
    with caplog.at_level(logging.INFO):
        assert main(["run-batch", *flags, "--sampling-defaults", '{"top_k": 5}', "--max-inflight", "2"]) == 0
        assert f"Done: 4 results in {folder.output}." in caplog.text
        assert "100% Completed | 4/4 [" in caplog.text
        assert main(["run-batch", *flags]) == 1
    assert "sampling_defaults.top_k: 5 -> nothing" in caplog.text


def test_a_check_lists_every_fault(folder: Folder, quiet: None, caplog: pytest.LogCaptureFixture) -> None:
    folder.write([{"prompt": "a"}, *["?"] * 12])
    flags = ["-i", str(folder.input), "-o", str(folder.output), "--model", str(folder.model), "--check"]
    with caplog.at_level(logging.INFO):
        assert main(["run-batch", *flags]) == 1
    assert "line 13: " in caplog.text and "13 lines, 12 of which can't be run." in caplog.text
    folder.write([{"prompt": "a"}])
    assert main(["run-batch", *flags]) == 0


@pytest.mark.usefixtures("interruptible")
def test_the_second_signal_is_not_held_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def enter() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_is_told_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = Progress(total=200, before=50)
    log = ProgressLog(progress, clock)
    with caplog.at_level(logging.INFO):
        log.update(1, 1)
        clock.now += 10
        log.update(10, 20)
        progress.answered, progress.failed = 50, 2
        clock.now += 1
        log.update(10, 20)
        clock.now += 9
        log.update(30, 40)
    assert [record.getMessage() for record in caplog.records] == [
        "Running batch:  25% Completed | 50/200 [00:10<?, 0.00req/s, input: 1.00 toks/s, output: 2.00 toks/s]",
        "Running batch:  50% Completed | 100/200 [00:20<00:40, 2.50req/s, input: 1.50 toks/s, output: 2.00 toks/s] "
        "2 failed",
    ]


def test_the_metrics_file_is_whole_at_any_time(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "metrics.prom"
    file = MetricsFile(path, 5.0, clock)
    values = iter(range(10))

    def metrics() -> list[Metric]:
        return [Metric("moelens:x", next(values), "gauge")]

    file.update(metrics)
    file.update(metrics)
    assert path.read_text().endswith("moelens:x 0\n"), "it is not time yet"
    clock.now += 5
    file.update(metrics)
    assert path.read_text().endswith("moelens:x 1\n")
    file.update(metrics, last=True)
    assert path.read_text().endswith("moelens:x 2\n")
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.prom"]


def test_a_metrics_file_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "folder"
    clock = Clock()
    file = MetricsFile(folder / "metrics.prom", 5.0, clock)
    with pytest.raises(JobError, match=r"metrics file .* can't be written: No such file"):
        file.update(list)
    folder.mkdir()
    file.update(list)
    (folder / "metrics.prom").unlink()
    folder.rmdir()
    for _ in range(2):
        clock.now += 5
        file.update(list)
    assert caplog.text.count("can't be written any more") == 1, "the job goes on"


def test_the_lines_of_a_job_by_state() -> None:
    values = {metric.name: metric.value for metric in job_metrics(Progress(10, 2, answered=3, failed=1))}
    assert values == {"moelens:batch_lines": 10, "moelens:batch_lines_done": 5, "moelens:batch_lines_failed": 1}
