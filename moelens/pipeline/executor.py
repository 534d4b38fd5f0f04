"""Runs a step's tasks on a machine's lanes.

Lanes cannot deadlock: tasks are submitted in topological order and each lane is first-in first-out, so the earliest
unfinished task is always at the head of its lane with its dependencies done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from moelens.errors import MoelensError, TaskError
from moelens.machine.machine import Done, Machine
from moelens.pipeline.task import Task
from moelens.pipeline.timeline import Span, Timeline

Act = Callable[[Task], None]


class Executor:
    """Submits tasks in order and waits for all of them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def run(self, tasks: Sequence[Task], act: Act) -> Timeline:
        """Run `act` for every task, in an order that honours `after`.

        A failing task stops the step: a MoelensError goes through as it is, anything else is raised as TaskError that
        names the stage, layer and part. Tasks that were submitted already are waited for.
        """
        timeline = Timeline()
        done: list[Done] = []
        try:
            for task in tasks:
                after = [done[earlier] for earlier in task.after]
                lane = self._machine.lane(task.stage.resource)
                done.append(lane.submit(_timed(task, act, timeline), after))
        finally:
            for completion in done:
                completion.wait()
        return timeline


def _timed(task: Task, act: Act, timeline: Timeline) -> Callable[[], None]:
    def run() -> None:
        start = time.perf_counter()
        try:
            act(task)
        except MoelensError:
            raise
        except Exception as error:
            raise TaskError(
                f"{task.stage.value} of layer {task.layer}, part {task.part} ({task.shape.tokens} rows) failed: {error}"
            ) from error
        timeline.spans.append(Span(task, start, time.perf_counter()))

    return run
