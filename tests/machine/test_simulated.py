"""Clocks honour lanes, dependencies and memory: worked out by hand, and for any step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.cost.workload import StepShape
from moelens.machine.simulated import LANES, ONE_LANE, Sharing, SimulatedMachine
from moelens.pipeline.step import step_tasks
from moelens.pipeline.task import Experts, LayerLoad, Resource, Stage, Task
from moelens.plan import Plan


def task(task_id: int, stage: Stage, *after: int) -> Task:
    return Task(task_id, stage, 0, 0, after)


LOAD, ATTEND, FINISH = task(0, Stage.LOAD), task(1, Stage.ATTEND_DECODES), task(2, Stage.AFTER_ATTENTION, 0, 1)


def test_lanes_overlap_and_dependencies_wait() -> None:
    needs = {0: (3.0, 0.0), 1: (1.0, 0.0), 2: (2.0, 0.0)}
    times = SimulatedMachine(LANES, 1.0).run([LOAD, ATTEND, FINISH], lambda t: needs[t.id])
    assert (times.seconds, times.begins, times.ends) == (5.0, (0.0, 0.0, 3.0), (3.0, 1.0, 5.0))
    assert times.busy_seconds[Resource.TO_DEVICE] == 3.0
    assert times.stretched_seconds == 0


def test_one_lane_is_the_sum() -> None:
    times = SimulatedMachine(ONE_LANE, 1e-9).run([LOAD, ATTEND, FINISH], lambda t: (1.0, 1e9))
    assert times.seconds == 3.0


def test_memory_is_shared_by_those_who_use_it() -> None:
    """Two tasks want 10 bytes a second each of 10 in all: they take twice as long while both run."""
    needs = {0: (3.0, 30.0), 1: (1.0, 10.0), 2: (1.0, 0.0)}
    times = SimulatedMachine(LANES, 10.0).run([LOAD, ATTEND, FINISH], lambda t: needs[t.id])
    assert times.ends == pytest.approx((4.0, 2.0, 5.0))
    assert times.stretched_seconds == pytest.approx(2.0)


def test_what_does_not_use_the_memory_is_not_slowed() -> None:
    independent = task(1, Stage.BEFORE_ATTENTION)
    needs = {0: (1.0, 20.0), 1: (1.0, 0.0)}
    times = SimulatedMachine(LANES, 10.0).run([LOAD, independent], lambda t: needs[t.id])
    assert times.ends == pytest.approx((2.0, 1.0))


def test_copies_take_cores_from_those_that_compute() -> None:
    """A link that takes half of a core of two leaves 1.5 to two lanes that compute: 3/4 of their speed."""
    sharing = Sharing(cores=2.0, taken={Resource.TO_DEVICE: 0.5, Resource.DEVICE: 1.0, Resource.HOST: 1.0})
    tasks = [LOAD, ATTEND, task(2, Stage.BEFORE_ATTENTION)]
    needs = {0: (1.0, 0.0), 1: (1.0, 0.0), 2: (1.0, 0.0)}
    times = SimulatedMachine(LANES, 1.0, sharing).run(tasks, lambda t: needs[t.id])
    assert times.ends == pytest.approx((1.0, 1.25, 1.25))


def test_a_link_that_moves_both_ways_is_slower_each_way() -> None:
    tasks = [LOAD, task(1, Stage.OFFLOAD)]
    needs = {0: (2.0, 0.0), 1: (1.0, 0.0)}
    times = SimulatedMachine(LANES, 1.0, Sharing(both_ways_share=0.5)).run(tasks, lambda t: needs[t.id])
    assert times.ends == pytest.approx((3.0, 2.0))


shapes = st.builds(lambda d, p: StepShape(d, 9 * d, p if d or p else 1, 9 * p, 1), st.integers(0, 3), st.integers(0, 3))
durations = st.dictionaries(
    st.sampled_from(list(Stage)), st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.floats(0, 50)), max_size=9
)


@settings(max_examples=60, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 3), durations, st.floats(0.5, 100))
def test_any_step_keeps_order_and_lies_between_its_bounds(
    parts: list[StepShape], layers: int, chunks: int, needs: dict[Stage, tuple[float, float]], rate: float
) -> None:
    plan = Plan(step_tokens=8, max_requests=4, kv_blocks=1, load_chunks=chunks)
    tasks = step_tasks(parts, [LayerLoad(front=True, experts=Experts.WHOLE)] * layers, plan)
    need = {stage: needs.get(stage, (1.0, 0.0)) for stage in Stage}
    times = SimulatedMachine(LANES, rate).run(tasks, lambda t: need[t.stage])
    lane_end = dict.fromkeys(Resource, 0.0)
    for one in tasks:
        begin, end = times.begins[one.id], times.ends[one.id]
        assert begin >= lane_end[one.stage.resource] - 1e-9
        assert all(begin >= times.ends[earlier] - 1e-9 for earlier in one.after)
        assert end - begin >= need[one.stage][0] - 1e-9
        lane_end[one.stage.resource] = end
    last = max(times.ends)
    assert times.seconds == max(times.ends[one.id] for one in tasks if not one.carried)
    assert times.seconds + times.carried_seconds == pytest.approx(last)
    assert max(times.busy_seconds.values()) <= last + 1e-9
    moved = sum(need[one.stage][1] for one in tasks if need[one.stage][0] > 0)
    assert moved <= rate * last * (1 + 1e-6) + 1e-6
