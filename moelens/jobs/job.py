"""A job from beginning to end: is it the one that was begun, what is left, run that, finish the output."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moelens.errors import JobError
from moelens.jobs.identity import file_digest
from moelens.jobs.journal import Journal, differences, journal_path
from moelens.jobs.model import JobModel, find_model, job_record
from moelens.jobs.options import JobOptions, JobReport
from moelens.jobs.ordering import order_file
from moelens.jobs.parquet import require_pyarrow, write_parquet
from moelens.jobs.reporting import MetricsFile, Progress
from moelens.jobs.results import Found, ResultFile, guarded, repair
from moelens.jobs.run import Work, run_work
from moelens.jobs.signals import StopSignals
from moelens.jobs.sources import JsonLines, Source, open_source
from moelens.jobs.survey import Survey, survey
from moelens.llm import LLM

logger = logging.getLogger(__name__)

_ANEW = "Give another output for a new job, or overwrite this one with --overwrite (overwrite=True)."
WINDOW_STEPS = 2  # steps' worth of requests in the model: those that run, and as many to take their places


def check_input(options: JobOptions) -> Survey:
    """Only look at the input, for what can't be run."""
    model = find_model(options)
    return survey(open_source(options.input), model.parser(options.seed), most_faults=None)


def run_job(options: JobOptions) -> JobReport:
    """Run what is left of a job.

    Raises JobError when it can't start or go on, and what loading the model raises.
    """
    _check_paths(options)
    model = find_model(options)
    source, parser = open_source(options.input), model.parser(options.seed)
    with Journal(options.output) as journal:
        if options.overwrite:
            _forget(options, journal)
        logger.info("Reading %s …", options.input)
        found = survey(source, parser)
        _warn_of_faults(found)
        _identify(options, journal, source, found.digest, job_record(options, model))
        earlier = _earlier_results(options, journal)
        progress = Progress(found.lines, len(earlier.done), failed=earlier.failed)
        stopped = None
        if len(earlier.done) < found.lines:
            stopped = _run(options, model, journal, Work(source, parser, found, earlier.done), progress)
        if stopped is None:
            _finish(options, journal, fresh=progress.answered > 0 or earlier.retried > 0)
    return JobReport(found.lines, progress.before, progress.answered, progress.failed, stopped is None, stopped)


def _check_paths(options: JobOptions) -> None:
    for path in {options.output, options.results, journal_path(options.output)}:
        if path.is_dir():
            raise JobError(f"output {str(path)!r} is a folder: give a file.")
        if path.exists() and options.input.exists() and path.samefile(options.input):
            raise JobError(f"output {str(path)!r} is the input: give another output.")
    if not options.output.parent.is_dir():
        raise JobError(f"output {str(options.output)!r} lies in a folder that does not exist: make it first.")
    if options.to_parquet:
        require_pyarrow(options.output)


def _forget(options: JobOptions, journal: Journal) -> None:
    for path in {options.output, options.results}:
        path.unlink(missing_ok=True)
    journal.clear()


def _warn_of_faults(found: Survey) -> None:
    if not found.faulty:
        return
    logger.warning("%d of %d lines can't be run, and will have an error as their result:", found.faulty, found.lines)
    for fault in found.faults:
        logger.warning("  line %d: %s", fault.number, fault.message)
    if found.faulty > len(found.faults):
        logger.warning("  … (--check lists all)")


def _identify(
    options: JobOptions, journal: Journal, source: Source, digest: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Take up the job that the journal tells of, or begin one.

    Raises JobError when it is another one.
    """
    before = journal.latest("job")
    if before is None:
        for path in {options.output, options.results}:
            if path.exists() and path.stat().st_size:
                raise JobError(f"output {str(path)!r} exists, and no job has written it (it has no journal). {_ANEW}")
        journal.append("job", input=digest, revision=options.engine.get("revision"), record=record)
        return
    grown = before["input"] != digest
    if grown and not _has_grown(source, before["input"]):
        raise JobError(
            f"output {str(options.output)!r} holds results of another input: {str(options.input)!r} is not what it was "
            f"({'; '.join(differences(before['input'], digest))}). {_ANEW}"
        )
    changes = list(differences(before["record"], record))
    _accept(options, changes)
    if grown:
        logger.info("The input has grown since; its new lines are run too.")
    if grown or changes:
        journal.append("job", input=digest, revision=options.engine.get("revision"), record=record)


def _accept(options: JobOptions, changes: list[str]) -> None:
    if changes and not options.accept_changes:
        listed = "".join(f"\n  {change}" for change in changes)
        if any(change.startswith("isa: ") for change in changes):
            listed += "\n  (MOELENS_CPU_ISA chooses the instruction set)"
        raise JobError(
            f"output {str(options.output)!r} was begun with something else, and its lines would not fit together:"
            f"{listed}\nRestore that, or go on in spite of it with --accept-changes (accept_changes=True). {_ANEW}"
        )
    for change in changes:
        logger.warning("Going on in spite of a change: %s", change)


def _has_grown(source: Source, before: Mapping[str, Any]) -> bool:
    """Whether the file is what it was with more lines after it."""
    size = int(before["bytes"])
    if not isinstance(source, JsonLines) or source.path.stat().st_size <= size:
        return False
    with source.path.open("rb") as file:
        file.seek(max(size - 1, 0))
        ended = file.read(1) == b"\n" or size == 0
    return ended and file_digest(source.path, size) == before


def _earlier_results(options: JobOptions, journal: Journal) -> Found:
    if not options.results.exists():
        if journal.latest("loaded") is not None:
            logger.warning("%s is gone, though its journal is there: starting anew.", options.results)
        return Found()
    found = repair(options.results, options.retry_errors)
    if found.torn_bytes:
        logger.info("Cut off %d bytes of an unfinished line.", found.torn_bytes)
    if found.damaged_lines:
        logger.warning("Took out %d damaged lines, which are run again.", found.damaged_lines)
    if found.retried:
        logger.info("Trying %d errors again.", found.retried)
    if len(found.done):
        logger.info("Going on: %d lines are done already.", len(found.done))
    return found


def _run(options: JobOptions, model: JobModel, journal: Journal, work: Work, progress: Progress) -> int | None:
    """Load the model and run; returns the signal that ended it, if one did."""
    metrics_file = None
    if options.metrics_file is not None:
        metrics_file = MetricsFile(options.metrics_file, options.metrics_seconds)
    with ResultFile(options.results) as results:
        llm = _load(options, journal)
        window = options.max_inflight or WINDOW_STEPS * llm.engine.plan.max_requests
        before = options.input.stat()
        with StopSignals() as stop:
            ended = run_work(work, llm, results, progress, window=window, metrics_file=metrics_file, stop=stop)
    after = options.input.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise JobError(
            f"input {str(options.input)!r} was changed while the job ran, and results may be of either version: "
            f"restore it and repeat the command, or start anew. {_ANEW}"
        )
    return None if ended else stop.received


def _load(options: JobOptions, journal: Journal) -> LLM:
    """The model, with the length limit of earlier runs, as the memory of this machine may choose another."""
    arguments = dict(options.engine)
    before = journal.latest("loaded")
    if before is not None:
        if arguments.get("max_model_len") is None:
            arguments["max_model_len"] = before["max_model_len"]
        _accept(options, list(differences(before["max_model_len"], arguments["max_model_len"], "max_model_len")))
    llm = LLM(options.model, seed=options.seed, **arguments)
    length = llm.engine.max_model_len
    if before is None or before["max_model_len"] != length:
        journal.append("loaded", max_model_len=length)
    return llm


def _finish(options: JobOptions, journal: Journal, fresh: bool) -> None:
    """Bring the output into its final form, and note that the job is done."""
    results, output = options.results, options.output
    if not results.exists():
        results.touch()  # an input without lines
    if options.to_parquet:
        if fresh or not journal.finished or not output.exists():
            guarded(output, lambda: write_parquet(results, output))
    elif options.ordered:
        guarded(output, lambda: order_file(output))
    if fresh or not journal.finished:
        journal.append("finished")


def resume_hint(output: Path, report: JobReport) -> str:
    """What to tell of a job that was stopped."""
    done = report.done_before + report.done
    return f"{done} of {report.lines} lines are done and kept in {os.fspath(output)}. Repeat the command to go on."
