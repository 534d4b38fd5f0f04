"""The tasks of a step: complete, in a legal order, and within the ring."""

from hypothesis import given
from hypothesis import strategies as st

from moelens.cost.workload import StepShape
from moelens.pipeline.step import step_tasks
from moelens.pipeline.task import Stage, Task
from moelens.plan import Plan

shapes = st.builds(
    StepShape,
    decode_tokens=st.integers(0, 3),
    decode_context=st.just(7),
    prefill_tokens=st.integers(0, 3),
    prefill_pairs=st.just(9),
).filter(lambda shape: shape.tokens > 0)


def make_plan(ring_layers: int, load_chunks: int) -> Plan:
    return Plan(step_tokens=64, max_requests=8, kv_blocks=8, ring_layers=ring_layers, load_chunks=load_chunks)


def closure(tasks: list[Task]) -> list[set[int]]:
    """For each task, everything that is done before it starts."""
    before: list[set[int]] = []
    for task in tasks:
        before.append(set(task.after).union(*(before[earlier] for earlier in task.after)))
    return before


@given(st.lists(shapes, min_size=1, max_size=3), st.integers(1, 5), st.integers(2, 6), st.integers(1, 3))
def test_every_layer_of_every_part_is_done_once_and_in_order(parts, layers, ring, load_chunks) -> None:
    tasks = step_tasks(parts, layers, make_plan(ring, load_chunks))
    assert [task.id for task in tasks] == list(range(len(tasks)))
    assert all(earlier < task.id for task in tasks for earlier in task.after)
    before = closure(tasks)
    where = {(t.stage, t.layer, t.part, t.chunk): t.id for t in tasks}
    assert len(where) == len(tasks)
    for part, shape in enumerate(parts):
        for layer in range(layers):
            enter, leave = where[Stage.BEFORE_ATTENTION, layer, part, 0], where[Stage.AFTER_ATTENTION, layer, part, 0]
            stored = where[Stage.STORE_KV, layer, part, 0]
            assert enter in before[stored]
            assert stored in before[leave]
            for chunk in range(load_chunks):
                assert where[Stage.LOAD, layer, 0, chunk] in before[enter]
            for stage, tokens in (
                (Stage.ATTEND_DECODES, shape.decode_tokens),
                (Stage.ATTEND_PREFILLS, shape.prefill_tokens),
            ):
                assert ((stage, layer, part, 0) in where) == (tokens > 0)
                if tokens:
                    assert stored in before[where[stage, layer, part, 0]]
                    assert where[stage, layer, part, 0] in before[leave]
            if layer:
                assert where[Stage.AFTER_ATTENTION, layer - 1, part, 0] in before[enter]
        assert where[Stage.AFTER_ATTENTION, layers - 1, part, 0] in before[where[Stage.LOGITS, layers - 1, part, 0]]


@given(st.lists(shapes, min_size=1, max_size=3), st.integers(1, 6), st.integers(2, 4), st.integers(1, 3))
def test_a_ring_slot_is_filled_again_only_when_every_part_has_left_it(parts, layers, ring, load_chunks) -> None:
    tasks = step_tasks(parts, layers, make_plan(ring, load_chunks))
    before = closure(tasks)
    leaves = {(t.layer, t.part): t.id for t in tasks if t.stage is Stage.AFTER_ATTENTION}
    for task in tasks:
        if task.stage is Stage.LOAD and task.layer >= ring:
            for part in range(len(parts)):
                assert leaves[task.layer - ring, part] in before[task.id]
