"""`moelens.run_batch`: a file of requests to a file of results."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moelens.jobs.job import run_job
from moelens.jobs.options import METRICS_SECONDS, JobOptions, JobReport


def run_batch(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    seed: int = 0,
    sampling_defaults: Mapping[str, Any] | None = None,
    served_model_name: str | Sequence[str] = (),
    max_inflight: int | None = None,
    ordered: bool = False,
    retry_errors: bool = False,
    overwrite: bool = False,
    accept_changes: bool = False,
    metrics_file: str | os.PathLike[str] | None = None,
    metrics_seconds: float = METRICS_SECONDS,
    **engine: Any,
) -> JobReport:
    """Run every line of `input`, a file of OpenAI's batch format, of plain prompts or of Parquet rows, into `output`.

    Repeating the call goes on where the last one ended, however it ended, and every line's result is the same bytes as
    in one go. `sampling_defaults` are fields of SamplingParams for lines that don't give them, `served_model_name` what
    bodies may call the model, `max_inflight` how many texts are in the model at once, running or waiting. `ordered`
    sorts the output at the end; `retry_errors` runs failed lines again; `overwrite` starts anew; `accept_changes` goes
    on with another model, version or setting. `engine` are arguments of LLM.

    Raises JobError when the job can't start or go on, and what LLM raises. On Ctrl-C the step is finished and its
    results are written before KeyboardInterrupt is raised.
    """
    options = JobOptions(
        input=Path(input),
        output=Path(output),
        model=os.fspath(model),
        seed=seed,
        sampling_defaults=dict(sampling_defaults or {}),
        served_model_name=[served_model_name] if isinstance(served_model_name, str) else list(served_model_name),
        max_inflight=max_inflight,
        ordered=ordered,
        retry_errors=retry_errors,
        overwrite=overwrite,
        accept_changes=accept_changes,
        metrics_file=None if metrics_file is None else Path(metrics_file),
        metrics_seconds=metrics_seconds,
        engine=engine,
    )
    report = run_job(options)
    if report.stopped_by is not None:
        signal.raise_signal(report.stopped_by)  # now that all is written, what it means without a job
    return report
