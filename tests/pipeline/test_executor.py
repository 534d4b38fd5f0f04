"""The executor runs tasks in order and says which one failed."""

import pytest

from moelens.cost.workload import StepShape
from moelens.errors import CapacityError, TaskError
from moelens.machine.cpu import CpuMachine
from moelens.pipeline.executor import Executor
from moelens.pipeline.step import step_tasks
from moelens.pipeline.task import LayerLoad, Resource, Stage, Task
from moelens.plan import Plan

PLAN = Plan(step_tokens=8, max_requests=2, kv_blocks=4, ring_layers=2)
TASKS = step_tasks([StepShape(decode_tokens=2, decode_context=5)], [LayerLoad()] * 3, PLAN)


def test_tasks_run_in_order_and_the_timeline_has_them_all() -> None:
    seen: list[Task] = []

    def act(task: Task) -> int:
        seen.append(task)
        return task.id

    timeline = Executor(CpuMachine()).run(TASKS, act, [2])
    assert {span.rows for span in timeline.spans} == {2}
    assert [span.moved_bytes for span in timeline.spans] == [task.id for task in TASKS]
    assert seen == TASKS
    assert [span.task for span in timeline.spans] == TASKS
    assert all(span.end_seconds >= span.start_seconds for span in timeline.spans)
    assert timeline.busy_seconds(Resource.DEVICE) == pytest.approx(
        sum(span.seconds for span in timeline.spans if span.task.stage.resource is Resource.DEVICE)
    )


def test_a_failing_task_is_named_and_ends_the_step() -> None:
    seen: list[Stage] = []

    def act(task: Task) -> int:
        seen.append(task.stage)
        if task.stage is Stage.ATTEND_DECODES and task.layer == 1:
            raise RuntimeError("the wheel came off")
        return 0

    with pytest.raises(
        TaskError, match=r"attend decodes of layer 1, part 0 \(2 rows\) failed: the wheel came off"
    ) as e:
        Executor(CpuMachine()).run(TASKS, act, [2])
    assert isinstance(e.value.__cause__, RuntimeError)
    assert seen[-1] is Stage.ATTEND_DECODES


def test_an_error_of_ours_goes_through_as_it_is() -> None:
    def act(task: Task) -> int:
        raise CapacityError("too big")

    with pytest.raises(CapacityError, match="too big"):
        Executor(CpuMachine()).run(TASKS, act)
