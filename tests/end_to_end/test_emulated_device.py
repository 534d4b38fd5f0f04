"""On a device with a memory of its own, tokens and log-probabilities are the same bits as on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batch_independence import REQUESTS, ROOMY, alone, make_request, model, run_requests

from moelens.devices import EmulatedDevice
from moelens.engine import Engine
from moelens.errors import CapacityError
from moelens.offload import open_device, place_plan, price_steps
from moelens.pipeline.task import Resource, Stage
from moelens.plan import Placement, Plan
from moelens.stopping import Stopping

LAYERS = 3
LINK = 20e9  # bytes per second; the waiting itself is tested elsewhere
SLOW_LINK = 1e8  # over which experts come later than the host would have used them where they lie


def memory_for(name: str, plan: Plan, holds: str) -> int:
    """Bytes with which a device of this plan holds just a ring, or also all fronts, or all of the model."""
    architecture, weights, ops = model(name, 1)
    placement = place_plan(EmulatedDevice(1 << 40, LINK), plan, architecture, ops)
    assert placement is not None and placement.fronts and len(placement.layers) == LAYERS
    layouts = [weights.slab(layer).layout for layer in range(LAYERS)]
    needs = placement.device_bytes - sum(layout.nbytes for layout in layouts)
    if holds == "ring":
        return needs + plan.ring_layers * max(layout.nbytes for layout in layouts)
    if holds == "fronts":
        blocks = max(layout.block.nbytes for layout in layouts)
        return needs + sum(layout.front.nbytes for layout in layouts) + plan.ring_layers * blocks
    return placement.device_bytes


def make_engine(
    name: str, plan: Plan, memory_bytes: int, link: float = LINK, **charged: int
) -> tuple[Engine, Placement]:
    architecture, weights, ops = model(name, 1)
    device = EmulatedDevice(memory_bytes, link)
    placement = place_plan(device, plan, architecture, ops)
    assert placement is not None
    placement = replace(placement, **charged)
    pricing = price_steps(device, architecture.config, plan, placement)
    side = open_device(device, architecture, weights, ops, plan, placement, pricing)
    engine = Engine(architecture, weights, ops, side.machine, plan, Stopping(None, (), 512), side.memory, pricing)
    return engine, placement


plans = st.builds(
    lambda step_tokens, max_requests, kv_blocks, parts, choose, chunks, on_host: replace(
        ROOMY,
        step_tokens=max(step_tokens, max_requests),
        max_requests=max_requests,
        kv_blocks=kv_blocks,
        parts=parts,
        choose_parts=choose,
        load_chunks=chunks,
        experts_on_host=on_host,
    ),
    st.integers(1, 200),
    st.integers(1, 8),
    st.integers(5, 24),
    st.integers(1, 9),  # also more than there are requests
    st.booleans(),
    st.integers(1, 4),
    st.booleans(),
)


@pytest.mark.parametrize("holds", ["ring", "fronts", "all"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen2_moe in int8"])  # a dense layer of another size
@settings(max_examples=8, deadline=None)
@given(st.permutations(range(len(REQUESTS))), st.integers(1, len(REQUESTS)), plans)
def test_no_placement_changes_a_bit(name: str, holds: str, order: list[int], count: int, plan: Plan) -> None:
    link = SLOW_LINK if plan.experts_on_host else LINK
    engine, placement = make_engine(name, plan, memory_for(name, plan, holds), link)
    assert placement.fronts == (holds != "ring") and (len(placement.layers) == LAYERS) == (holds == "all")
    chosen = order[:count]
    outcomes = run_requests(engine, chosen)
    for index in chosen:
        assert outcomes[index] == alone(name, index), f"request {index} under {plan}"


def test_what_is_computed_on_the_device_takes_no_more_than_was_charged_for_it() -> None:
    memory_bytes = memory_for("mixtral", ROOMY, "all")
    engine, _ = make_engine("mixtral", ROOMY, memory_bytes, activation_bytes=1000)
    engine.add(make_request(0))
    with pytest.raises(CapacityError, match="has 1000 bytes for what is computed on it, but"):
        list(engine.run())


@pytest.mark.parametrize("fields", [{}, {"parts": 2}])
def test_a_request_alone_brings_only_the_experts_that_it_is_routed_to(fields: dict[str, int]) -> None:
    plan = replace(ROOMY, step_tokens=32, share_prefixes=False, **fields)
    engine, _ = make_engine("mixtral", plan, memory_for("mixtral", plan, "fronts"))
    architecture, weights, _ = model("mixtral", 1)
    expert = weights.slab(0).layout.block.nbytes // 5
    engine.add(make_request(0))
    for step, _ in enumerate(engine.run()):
        moved = engine.last_timeline.moved_bytes(Resource.TO_DEVICE)
        if step > 1:  # the first brought all experts for its prompt, and the second found some of them there
            routed = 2 * expert * len(architecture.layer_tensors)
            assert moved <= 1.2 * routed, f"step {step} moved {moved} bytes for {routed} of experts"


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])  # the latter's shared expert is the host's, too
@pytest.mark.parametrize("parts", [1, 2])
def test_the_host_finishes_rows_whose_experts_would_come_later(name: str, parts: int) -> None:
    plan = replace(ROOMY, step_tokens=32, parts=parts, experts_on_host=True)
    engine, _ = make_engine(name, plan, memory_for(name, plan, "fronts"), SLOW_LINK)
    host_finishes = 0
    for index in (0, 3):
        engine.add(make_request(index))
    outcomes = {}
    for report in engine.run():
        spans = [span for span in engine.last_timeline.spans if span.task.stage is Stage.UPLOAD_ROWS]
        host_finishes += sum(span.moved_bytes > 0 for span in spans)
        for request in report.finished:
            outcomes[request.request_id] = list(request.output_token_ids)
    assert host_finishes, "over a link as slow as this nothing should be brought that the host can do"
    assert outcomes == {index: alone(name, index)[0] for index in (0, 3)}
