"""What is asked of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moelens.errors import ConfigError
from moelens.sampling_params import SamplingParams

METRICS_SECONDS = 5.0


@dataclass(frozen=True)
class JobOptions:
    """Input, output, model and how to go about it; see `moelens.run_batch` for what each means.

    `engine` are further arguments of LLM. Raises ConfigError for a value that can't be.
    """

    input: Path
    output: Path
    model: str
    seed: int = 0
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    served_model_name: Sequence[str] = ()
    max_inflight: int | None = None
    ordered: bool = False
    retry_errors: bool = False
    overwrite: bool = False
    accept_changes: bool = False
    metrics_file: Path | None = None
    metrics_seconds: float = METRICS_SECONDS
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_inflight is not None and self.max_inflight < 1:
            raise ConfigError(f"max_inflight must be at least 1, got {self.max_inflight}.")
        if self.metrics_seconds <= 0:
            raise ConfigError(f"metrics_seconds must be positive, got {self.metrics_seconds}.")
        if self.engine.get("skip_tokenizer_init"):
            raise ConfigError("skip_tokenizer_init=True is not supported here: results are texts. Leave it out.")
        if self.retry_errors and self.overwrite:
            raise ConfigError("retry_errors goes on with the output and overwrite drops it: leave one out.")
        try:
            SamplingParams(**self.sampling_defaults)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"sampling_defaults can't be used: {error}") from error

    @property
    def to_parquet(self) -> bool:
        """Whether the results become a Parquet file."""
        return self.output.suffix == ".parquet"

    @property
    def results(self) -> Path:
        """Where results are appended: the output itself, or beside it when that is a Parquet file."""
        return self.output.with_name(f"{self.output.name}.results.jsonl") if self.to_parquet else self.output


@dataclass(frozen=True)
class JobReport:
    """How a job went: lines of the input, those done before and in this run, and failed ones of all that are done.

    `finished` is False when a signal, of the number `stopped_by`, ended the run before the last line.
    """

    lines: int
    done_before: int
    done: int
    failed: int
    finished: bool
    stopped_by: int | None = None
