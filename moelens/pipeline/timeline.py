"""When each task ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from moelens.pipeline.task import Resource, Stage, Task


class Span(NamedTuple):
    """A task, its start and end in seconds of one clock, the bytes that it moved between host and device, and the rows
    that it worked for."""

    task: Task
    start_seconds: float
    end_seconds: float
    moved_bytes: int = 0
    rows: int = 0

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True)
class ExpectedStep:
    """What a step is expected to take: in all, outside of its tasks, and by stage."""

    seconds: float
    outside_seconds: float
    stage_seconds: Mapping[Stage, float]


@dataclass
class Timeline:
    """The spans of one or more steps, in order of submission."""

    spans: list[Span] = field(default_factory=list)

    @classmethod
    def of(cls, tasks: Sequence[Task], begins: Sequence[float], ends: Sequence[float]) -> Timeline:
        """Of tasks whose times are known, such as those of a simulated step."""
        return cls([Span(task, begin, end) for task, begin, end in zip(tasks, begins, ends, strict=True)])

    @property
    def seconds(self) -> float:
        """From the first task's start to the last one's end."""
        starts = (span.start_seconds for span in self.spans)
        return max((span.end_seconds for span in self.spans), default=0.0) - min(starts, default=0.0)

    def busy_seconds(self, resource: Resource) -> float:
        """Time that a resource spent on tasks."""
        return sum(span.seconds for span in self.spans if span.task.stage.resource is resource)

    def moved_bytes(self, resource: Resource) -> int:
        """Bytes that a resource moved between host and device."""
        return sum(span.moved_bytes for span in self.spans if span.task.stage.resource is resource)

    def stage_seconds(self) -> dict[Stage, float]:
        """Time spent on each stage."""
        seconds = dict.fromkeys(Stage, 0.0)
        for span in self.spans:
            seconds[span.task.stage] += span.seconds
        return seconds
