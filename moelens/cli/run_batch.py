"""`python -m moelens run-batch`: a file of requests to a file of results."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from moelens.cli.flags import add_model_flags, engine_arguments
from moelens.cli.parser import Parser, json_object, positive
from moelens.errors import MoelensError
from moelens.jobs.job import check_input, resume_hint, run_job
from moelens.jobs.options import METRICS_SECONDS, JobOptions

logger = logging.getLogger("moelens")

DESCRIPTION = """\
Run every line of a file: OpenAI's batch format (/v1/chat/completions, /v1/completions), plain lines
{"prompt": ...} or {"messages": ...} with their own sampling fields, or the rows of a .parquet file.
Each result is appended to the output when it is complete. However the command ends, repeat it to go on:
no line is lost or run twice, and each result is the same as in one go. See docs/jobs.md.
Exit status: 0 done, 1 an error, 2 a wrong flag, 130 or 143 stopped by SIGINT or SIGTERM."""

_REFUSED = {
    "--enable-metrics": "use --metrics-file",
    "--output-tmp-dir": "results are appended to the output as they come",
}


def make_parser() -> Parser:
    """The flags of run-batch."""
    parser = Parser(
        prog="python -m moelens run-batch",
        usage="%(prog)s -i INPUT -o OUTPUT --model MODEL [flags]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        refused=_REFUSED,
    )
    parser.add_argument("-i", "--input-file", type=Path, required=True, help="JSON lines, or a .parquet file")
    parser.add_argument("-o", "--output-file", type=Path, required=True, help="JSON lines, or a .parquet file")
    job = parser.add_argument_group("job")
    job.add_argument("--check", action="store_true", help="only say which lines can't be run, without the weights")
    job.add_argument("--sampling-defaults", type=json_object, default={}, help='e.g. {"max_tokens": 256}')
    job.add_argument("--served-model-name", nargs="+", default=(), help="what bodies may call the model")
    job.add_argument("--ordered", action="store_true", help="sort the output by the input's lines at the end")
    job.add_argument("--retry-errors", action="store_true", help="run the lines again whose result is an error")
    job.add_argument("--overwrite", action="store_true", help="drop what the output holds and start anew")
    job.add_argument("--accept-changes", action="store_true", help="go on with another model, version or setting")
    job.add_argument("--max-inflight", type=positive, help="texts in the model at once, running or waiting")
    job.add_argument("--metrics-file", type=Path, help="counts in Prometheus' text format, kept up to date")
    job.add_argument("--metrics-seconds", type=float, default=METRICS_SECONDS, help="how often (%(default)s)")
    add_model_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    found = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("moelens").setLevel(logging.INFO)
    try:
        options = _options(found)
        return _check(options) if found.check else _run(options)
    except MoelensError as error:
        logger.error("run-batch: %s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("run-batch: interrupted; what is done stays. Repeat the command to go on.")
        return 128 + signal.SIGINT


def _options(found: argparse.Namespace) -> JobOptions:
    return JobOptions(
        input=found.input_file,
        output=found.output_file,
        model=found.model,
        seed=found.seed,
        sampling_defaults=found.sampling_defaults,
        served_model_name=found.served_model_name,
        max_inflight=found.max_inflight,
        ordered=found.ordered,
        retry_errors=found.retry_errors,
        overwrite=found.overwrite,
        accept_changes=found.accept_changes,
        metrics_file=found.metrics_file,
        metrics_seconds=found.metrics_seconds,
        engine=engine_arguments(found),
    )


def _run(options: JobOptions) -> int:
    report = run_job(options)
    if report.stopped_by is not None:
        name = signal.Signals(report.stopped_by).name
        logger.warning("run-batch: stopped by %s. %s", name, resume_hint(options.output, report))
        return 128 + report.stopped_by
    failed = f", {report.failed} of them errors" if report.failed else ""
    logger.info("Done: %d results in %s%s.", report.lines, options.output, failed)
    return 0


def _check(options: JobOptions) -> int:
    found = check_input(options)
    for fault in found.faults:
        logger.error("line %d: %s", fault.number, fault.message)
    logger.info("%d lines, %d of which can't be run.", found.lines, found.faulty)
    return 1 if found.faulty else 0
