"""Runs a step's tasks on a machine's lanes.

Lanes cannot deadlock: tasks are submitted in topological order and each lane is first-in first-out, so the earliest
unfinished task is always at the head of its lane with its dependencies done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moelens.errors import MoelensError, TaskError
from moelens.machine.machine import Act, Done, Machine
from moelens.pipeline.task import OF_WEIGHTS, Task
from moelens.pipeline.timeline import Span, Timeline

ActTask = Callable[[Task], int]


class Executor:
    """Submits tasks in order and waits for all of them but those that are carried into the next step."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._carried: list[tuple[Task, Done]] = []
        self._carrying: _Guard | None = None

    def run(self, tasks: Sequence[Task], act: ActTask, rows: Sequence[int] = ()) -> Timeline:
        """Run `act` for every task, in an order that honours `after`; it returns the bytes that it moved.

        `rows` are those of each part, for messages and the timeline. The timeline has this step's tasks and those that
        the step before has carried into it. A failing task stops the step: a MoelensError goes through as it is,
        anything else is raised as TaskError that names the stage, layer and part. Whatever was submitted is over when
        the exception is raised.
        """
        if self._carrying is not None:
            self._carrying.is_over = True
        guard = self._carrying = _Guard(act, rows)
        done: list[Done] = []
        try:
            for task in tasks:
                after = [done[earlier] for earlier in task.after]
                done.append(self._machine.lane(task.stage.resource).submit(task, guard.act(task), after))
                if guard.stopped:
                    break
            for task, completion in zip(tasks, done, strict=False):
                if not task.carried:
                    completion.wait()
            if guard.error is not None:  # of a carried task, or of one that nothing came after
                raise guard.error
        except BaseException:
            guard.stopped = True
            for completion in done:
                _succeeded(completion)
            raise
        return self._timeline(tasks, done, rows)

    def _timeline(self, tasks: Sequence[Task], done: Sequence[Done], rows: Sequence[int]) -> Timeline:
        finished = [pair for pair in self._carried if _succeeded(pair[1])]
        finished += [pair for pair in zip(tasks, done, strict=True) if not pair[0].carried]
        self._carried = [pair for pair in zip(tasks, done, strict=True) if pair[0].carried]
        return Timeline(
            [Span(task, of.start_seconds, of.end_seconds, of.moved_bytes, _rows(task, rows)) for task, of in finished]
        )


class _Guard:
    """Names a task that fails, and skips all that come after it in time, and carried ones that come too late."""

    def __init__(self, act: ActTask, rows: Sequence[int]) -> None:
        self._act = act
        self._rows = rows
        self.stopped = False
        self.is_over = False  # the next step has begun: what was carried and has not begun is left to its own tasks
        self.error: Exception | None = None

    def act(self, task: Task) -> Act:
        return lambda: self._run(task)

    def _run(self, task: Task) -> int:
        if self.stopped or (task.carried and self.is_over):
            return 0
        try:
            return self._act(task)
        except Exception as error:
            named = error if isinstance(error, MoelensError) else _name(task, _rows(task, self._rows), error)
            self.error, self.stopped = self.error or named, True
            raise named from error.__cause__ if named is error else error


def _rows(task: Task, of_parts: Sequence[int]) -> int:
    """Those that a task works for; weights have none."""
    return 0 if task.stage in OF_WEIGHTS or not of_parts else of_parts[task.part]


def _name(task: Task, rows: int, error: Exception) -> TaskError:
    return TaskError(f"{task.stage.value} of layer {task.layer}, part {task.part} ({rows} rows) failed: {error}")


def _succeeded(completion: Done) -> bool:
    """Wait for a completion whose error, if any, is told elsewhere or does not matter."""
    try:
        completion.wait()
    except Exception:
        return False
    return True
