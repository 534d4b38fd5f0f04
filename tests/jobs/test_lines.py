"""Lines without a file: the same results as a job's, in the order of the lines, whoever else runs others."""

from __future__ import annotations

from fake_engine import FakeEngine
from job_folder import Folder, requests

from moelens.jobs.lines import LineRunner


def test_lines_have_the_results_of_a_job(folder: Folder, engines: list[FakeEngine]) -> None:
    folder.write(["\ufeff" + '{"prompt": "with a mark"}', *requests(20), "no json", {"prompt": "x", "temperature": -1}])
    folder.run(seed=3, sampling_defaults={"min_tokens": 1}, ordered=True)
    lines = list(enumerate(folder.input.read_bytes().splitlines(keepends=True), start=1))
    runner = LineRunner(folder.model, seed=3, sampling_defaults={"min_tokens": 1})
    assert runner.run(lines) == list(folder.raw())
    assert runner.run(lines[7:9]) == list(folder.raw()[7:9])
    assert runner.run([]) == []
    assert len(engines) == 2 and not engines[1].running
