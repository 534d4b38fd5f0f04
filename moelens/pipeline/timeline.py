"""When each task ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from moelens.pipeline.task import Resource, Stage, Task


@dataclass(frozen=True)
class Span:
    """A task and its start and end, in seconds of one clock."""

    task: Task
    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


@dataclass
class Timeline:
    """The spans of one or more steps, in order of submission."""

    spans: list[Span] = field(default_factory=list)

    def busy_seconds(self, resource: Resource) -> float:
        """Time that a resource spent on tasks."""
        return sum(span.seconds for span in self.spans if span.task.stage.resource is resource)

    def stage_seconds(self) -> dict[Stage, float]:
        """Time spent on each stage."""
        return {stage: _total(self.spans, stage) for stage in Stage}


def _total(spans: Iterable[Span], stage: Stage) -> float:
    return sum(span.seconds for span in spans if span.task.stage is stage)
