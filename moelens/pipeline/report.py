"""What is said of a step that was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moelens.cost.workload import StepShape
from moelens.pipeline.task import Stage
from moelens.pipeline.timeline import ExpectedStep
from moelens.request import Request


@dataclass(frozen=True)
class StepReport:
    """A step's parts, the requests that it ended and the number of tokens that it picked.

    `seconds` is its wall time, of which `stage_seconds` were spent on tasks; `expected` is what it was expected to take
    (None: the machine was not measured).
    """

    parts: Sequence[StepShape]
    finished: Sequence[Request]
    output_tokens: int
    seconds: float
    stage_seconds: Mapping[Stage, float]
    expected: ExpectedStep | None = None

    @property
    def prompt_tokens(self) -> int:
        """Rows of prompts, with what preemption made us compute again."""
        return sum(part.prefill_tokens for part in self.parts)

    @property
    def decode_rows(self) -> int:
        """Rows that extended a request by one token."""
        return sum(part.decode_tokens for part in self.parts)
