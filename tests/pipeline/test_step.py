"""The tasks of a step: complete, in a legal order, and within the ring."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from moelens.cost.footprint import LOGIT_ROWS
from moelens.cost.workload import StepShape
from moelens.pipeline.step import MOST_PATTERNS, StepTasks, step_tasks
from moelens.pipeline.task import Experts, LayerLoad, Resource, Stage, Task
from moelens.plan import Plan


@st.composite
def shapes(draw) -> StepShape:
    decodes, prefills = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    resumed = draw(st.integers(0, prefills))
    logits = draw(st.sampled_from([0, 1, LOGIT_ROWS, 3 * LOGIT_ROWS + 5]))
    return StepShape(decodes, 7 * decodes, prefills, 9 * prefills, logits, resumed, 9 * resumed)


parts_of = st.lists(shapes().filter(lambda shape: shape.tokens > 0), min_size=1, max_size=4)
loads_of = st.lists(st.builds(LayerLoad, st.booleans(), st.sampled_from(Experts)), min_size=1, max_size=7)
STREAMED = LayerLoad(front=True, experts=Experts.WHOLE)


def make_plan(ring_layers: int = 2, load_chunks: int = 1, **fields) -> Plan:
    return Plan(step_tokens=64, max_requests=8, kv_blocks=8, ring_layers=ring_layers, load_chunks=load_chunks, **fields)


def closure(tasks: list[Task]) -> list[set[int]]:
    """For each task, everything that is done before it starts, but for what its lane did before."""
    before: list[set[int]] = []
    for task in tasks:
        before.append(set(task.after).union(*(before[earlier] for earlier in task.after)))
    return before


def find(tasks: list[Task]) -> dict[tuple[Stage, int, int, int], int]:
    where = {(t.stage, t.layer, t.part, t.chunk): t.id for t in tasks if not t.carried}
    assert len(where) == sum(not t.carried for t in tasks), "two tasks do the same"
    return where


@given(parts_of, loads_of, st.integers(2, 6), st.integers(1, 3))
def test_every_layer_of_every_part_is_done_once_and_in_order(parts, loads, ring, chunks) -> None:
    tasks = step_tasks(parts, loads, make_plan(ring, chunks))
    assert [task.id for task in tasks] == list(range(len(tasks)))
    assert all(earlier < task.id for task in tasks for earlier in task.after)
    before, where = closure(tasks), find(tasks)
    for part, shape in enumerate(parts):
        for layer, load in enumerate(loads):
            routed, divided = load.experts.wait_for_routes, load.experts is Experts.DIVIDED
            last = Stage.EXPERTS if routed else Stage.AFTER_ATTENTION
            enter, leave = where[Stage.BEFORE_ATTENTION, layer, part, 0], where[last, layer, part, 0]
            stored = where[Stage.STORE_KV, layer, part, 0]
            assert enter in before[stored]
            wanted = {
                Stage.ATTEND_PREFILLS: (shape.prefill_tokens - shape.resumed_tokens, enter),
                Stage.ATTEND_DECODES: (shape.decode_tokens, stored),
                Stage.ATTEND_RESUMED: (shape.resumed_tokens, stored),
                Stage.UPLOAD: (shape.hosted_tokens, stored),
            }
            for stage, (tokens, cause) in wanted.items():
                assert ((stage, layer, part, 0) in where) == (tokens > 0)
                if tokens:
                    assert cause in before[where[stage, layer, part, 0]]
                    assert where[stage, layer, part, 0] in before[leave]
            assert ((Stage.LOAD, layer, 0, 0) in where) == load.front
            if load.front:
                assert where[Stage.LOAD, layer, 0, 0] in before[enter]
            for chunk in range(1, chunks + 1):
                assert ((Stage.LOAD, layer, 0, chunk) in where) == (load.experts is Experts.WHOLE)
                if load.experts is Experts.WHOLE:
                    assert where[Stage.LOAD, layer, 0, chunk] in before[leave]
            if routed:
                assert where[Stage.OFFLOAD_ROUTES, layer, part, 0] in before[where[Stage.LOAD_EXPERTS, layer, part, 0]]
                assert where[Stage.LOAD_EXPERTS, layer, part, 0] in before[leave]
            assert ((Stage.FINISH_ROWS, layer, part, 0) in where) == divided
            if divided:
                finished = where[Stage.FINISH_ROWS, layer, part, 0]
                assert where[Stage.OFFLOAD_ROUTES, layer, part, 0] in before[finished]
                assert where[Stage.LOAD_EXPERTS, layer, part, 0] not in before[finished]  # they go on at once
                assert finished in before[where[Stage.UPLOAD_ROWS, layer, part, 0]]
                assert where[Stage.UPLOAD_ROWS, layer, part, 0] in before[leave]
            if layer:
                previous = Stage.EXPERTS if loads[layer - 1].experts.wait_for_routes else Stage.AFTER_ATTENTION
                assert where[previous, layer - 1, part, 0] in before[enter]
                assert where[Stage.OFFLOAD, layer - 1, part, 0] in before[enter]  # or q, k and v would be written over
                assert where[Stage.STORE_KV, layer - 1, part, 0] in before[where[Stage.OFFLOAD, layer, part, 0]]


@given(parts_of, loads_of)
def test_all_logits_are_sampled_in_groups_of_which_two_exist(parts, loads) -> None:
    tasks = step_tasks(parts, loads, make_plan())
    before, where = closure(tasks), find(tasks)
    for part, shape in enumerate(parts):
        chunks = [t.chunk for t in tasks if t.stage is Stage.SAMPLE and t.part == part]
        assert chunks == list(range(-(-shape.logit_rows // LOGIT_ROWS)))
        for chunk in chunks[2:]:
            layer = len(loads) - 1
            assert (
                where[Stage.OFFLOAD_LOGITS, layer, part, chunk - 2] in before[where[Stage.LOGITS, layer, part, chunk]]
            )
            assert (
                where[Stage.SAMPLE, layer, part, chunk - 2] in before[where[Stage.OFFLOAD_LOGITS, layer, part, chunk]]
            )


@given(parts_of, loads_of, st.integers(2, 4), st.integers(1, 3))
def test_a_ring_slot_is_filled_again_only_when_every_part_has_left_it(parts, loads, ring, chunks) -> None:
    tasks = step_tasks(parts, loads, make_plan(ring, chunks))
    before = closure(tasks)
    streamed = [layer for layer, load in enumerate(loads) if load.streams]
    ends = {Stage.AFTER_ATTENTION, Stage.EXPERTS}
    leaves = {(t.layer, t.part): t.id for t in tasks if t.stage in ends}
    for task in tasks:
        if task.stage not in (Stage.LOAD, Stage.LOAD_EXPERTS):
            continue
        slot = streamed.index(task.layer) % ring
        others = [layer for i, layer in enumerate(streamed) if i % ring == slot and layer != task.layer]
        gone = others if task.carried else [layer for layer in others if layer < task.layer]
        for layer in gone:
            for part in range(len(parts)):
                assert leaves[layer, part] in before[task.id]


@given(parts_of, loads_of, st.integers(2, 4), st.integers(1, 3))
def test_the_next_steps_first_layers_follow(parts, loads, ring, chunks) -> None:
    """As many as the ring holds, unless they never left it; nothing in the step waits for them."""
    tasks = step_tasks(parts, loads, make_plan(ring, chunks))
    carried = {task.id for task in tasks if task.carried}
    assert not [task for task in tasks if carried & set(task.after)]
    streamed = [layer for layer, load in enumerate(loads) if load.streams]
    replaced = streamed[: min(ring, max(0, len(streamed) - ring))]
    wanted = [(layer, 0) for layer in replaced if loads[layer].front]
    wanted += [(layer, c) for layer in replaced if loads[layer].experts is Experts.WHOLE for c in range(1, chunks + 1)]
    assert sorted((tasks[i].layer, tasks[i].chunk) for i in carried) == sorted(wanted)


@st.composite
def disk_plans(draw) -> tuple[list[LayerLoad], Plan]:
    """Loads of which some come from disk, and a plan in which a few layers more lie there (they stay on the device)."""
    loads = draw(loads_of)
    held = draw(st.lists(st.booleans(), min_size=len(loads), max_size=len(loads)))
    used = draw(st.lists(st.booleans(), min_size=len(loads), max_size=len(loads)))
    loads = [replace(load, from_disk=on and use) for load, on, use in zip(loads, held, used, strict=True)]
    layers = tuple(layer for layer, on in enumerate(held) if on)
    ring, chunks, slots = draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(2, 4))
    return loads, make_plan(ring, chunks, disk_layers=layers, disk_ring_layers=slots)


@given(parts_of, disk_plans())
def test_what_lies_on_disk_is_read_to_a_slot_that_is_free_before_it_is_used(parts, drawn) -> None:
    loads, plan = drawn
    tasks = step_tasks(parts, loads, plan)
    before, where = closure(tasks), find(tasks)
    ends = {Stage.AFTER_ATTENTION, Stage.EXPERTS}
    leaves = {(t.layer, t.part): t.id for t in tasks if t.stage in ends}
    for layer, load in enumerate(loads):
        routed = load.experts.wait_for_routes
        whole = load.from_disk and not routed
        assert ((Stage.READ, layer, 0, 0) in where) == whole
        for part in range(len(parts)):
            assert ((Stage.READ_EXPERTS, layer, part, 0) in where) == (load.from_disk and routed)
            if whole:
                assert where[Stage.READ, layer, 0, 0] in before[leaves[layer, part]]
            if load.from_disk and routed:
                read = where[Stage.READ_EXPERTS, layer, part, 0]
                assert where[Stage.OFFLOAD_ROUTES, layer, part, 0] in before[read]
                assert read in before[where[Stage.LOAD_EXPERTS, layer, part, 0]]
    for task in tasks:
        if task.stage is Stage.LOAD and loads[task.layer].from_disk and task.chunk:
            reads = [t for t in tasks if t.stage is Stage.READ and t.layer == task.layer and t.id in before[task.id]]
            assert reads, "experts are loaded that were not read"
        if task.stage in (Stage.READ, Stage.READ_EXPERTS):
            slot = plan.disk_layers.index(task.layer) % plan.disk_ring_layers
            sharing = [x for x in plan.disk_layers[slot :: plan.disk_ring_layers] if loads[x].from_disk]
            gone = [x for x in sharing if x != task.layer and (task.carried or x < task.layer)]
            assert all(leaves[x, part] in before[task.id] for x in gone for part in range(len(parts)))


@given(parts_of, disk_plans())
def test_loads_for_the_next_step_come_only_after_their_read(parts, drawn) -> None:
    """Or where the layer never leaves its slot: then this step's read is enough."""
    loads, plan = drawn
    tasks = step_tasks(parts, loads, plan)
    before = closure(tasks)
    for task in tasks:
        if task.carried and task.stage is Stage.LOAD and task.chunk and loads[task.layer].from_disk:
            slot = plan.disk_layers.index(task.layer) % plan.disk_ring_layers
            sharing = [x for x in plan.disk_layers[slot :: plan.disk_ring_layers] if loads[x].from_disk]
            reads = [t for t in tasks if t.stage is Stage.READ and t.layer == task.layer and t.id in before[task.id]]
            assert any(read.carried for read in reads) == (len(sharing) > 1)


def test_parts_take_turns_and_enter_the_next_layer_at_once() -> None:
    tasks = step_tasks([StepShape(2, 5, 1, 1), StepShape(1, 3)], [STREAMED] * 3, make_plan())
    device = [(t.stage, t.layer, t.part) for t in tasks if t.stage.resource is Resource.DEVICE]
    middle = device[device.index((Stage.AFTER_ATTENTION, 0, 0)) : device.index((Stage.AFTER_ATTENTION, 1, 0))]
    assert middle == [
        (Stage.AFTER_ATTENTION, 0, 0),
        (Stage.BEFORE_ATTENTION, 1, 0),
        (Stage.ATTEND_PREFILLS, 1, 0),
        (Stage.AFTER_ATTENTION, 0, 1),
        (Stage.BEFORE_ATTENTION, 1, 1),
    ]


def test_chunks_of_the_coming_layer_lie_between_the_uploads() -> None:
    loads = [LayerLoad(experts=Experts.WHOLE)] * 6
    tasks = step_tasks([StepShape(2, 5), StepShape(1, 3)], loads, make_plan(load_chunks=4))
    lane = [(t.stage, t.layer) for t in tasks if t.stage.resource is Resource.TO_DEVICE]
    begin = lane.index((Stage.UPLOAD, 1))
    assert lane[begin : begin + 6] == [
        (Stage.UPLOAD, 1),  # its rows come up when layer 0 has just been left, so before what takes its slot
        *[(Stage.LOAD, 2)] * 2,
        (Stage.UPLOAD, 1),
        *[(Stage.LOAD, 2)] * 2,
    ]


@given(st.lists(st.tuples(parts_of, loads_of), min_size=2, max_size=6))
def test_tasks_that_were_made_for_another_step_are_those_of_this_one(steps) -> None:
    make, plan = StepTasks(make_plan()), make_plan()
    for parts, loads in (*steps, *steps):
        assert make(parts, loads) == step_tasks(parts, loads, plan)


def test_steps_that_differ_in_numbers_only_share_their_tasks() -> None:
    make, loads = StepTasks(make_plan()), [STREAMED] * 3
    first = make([StepShape(2, 5, logit_rows=2)], loads)
    assert make([StepShape(7, 90, logit_rows=7)], loads) is first
    for rows in range(2, MOST_PATTERNS + 2):  # so many patterns more, that the first is forgotten
        make([StepShape(rows, rows, logit_rows=rows * LOGIT_ROWS)], loads)
    assert make([StepShape(2, 5, logit_rows=2)], loads) is not first
