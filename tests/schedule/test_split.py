"""Parts of a step: all chunks, none twice, and about as long on every lane."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelens.cost.workload import RowSeconds, StepShape
from moelens.plan import Plan
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.schedule.batch import Chunk, Running
from moelens.schedule.prefix import BlockKeys
from moelens.schedule.split import NoPrices, split_chunks, split_step

SECONDS = RowSeconds(5e-4, 1e-6, 1e-5, 2e-6, 1e-6, 3e-5, 4e-5)


def make_chunk(count: int, cached: int) -> Chunk:
    request = Request(0, array("i", bytes(4 * (count + cached))), SamplingParams(max_tokens=1), seed=0)
    return Chunk(Running(request, 0, BlockKeys(32), cached), count)


chunks_of = st.lists(
    st.one_of(
        st.builds(make_chunk, st.just(1), st.integers(1, 3000)),
        st.builds(make_chunk, st.integers(1, 400), st.just(0)),
        st.builds(make_chunk, st.integers(2, 400), st.integers(1, 500)),
    ),
    min_size=1,
    max_size=40,
)


@given(chunks_of, st.integers(1, 9))
def test_every_chunk_is_in_one_part_and_rounds_differ_by_one_chunk_at_most(chunks: list[Chunk], parts: int) -> None:
    groups = split_chunks(chunks, parts, SECONDS)
    assert len(groups) == min(parts, len(chunks)) and all(groups)
    places = {id(chunk): index for index, chunk in enumerate(chunks)}
    assert sorted(places[id(chunk)] for group in groups for chunk in group) == list(range(len(chunks)))
    for group in groups:
        assert [places[id(chunk)] for chunk in group] == sorted(places[id(chunk)] for chunk in group)
    rounds = [[sum(SECONDS.of(chunk.count, chunk.running.cached)) for chunk in group] for group in groups]
    # Adding at most twice a chunk's round to a group's key, the greedy choice leaves no more than that between groups.
    longest = max(max(each) for each in rounds)
    assert max(map(sum, rounds)) <= 2 * (min(map(sum, rounds)) + longest) + 1e-12


def test_seconds_decide_and_not_rows() -> None:
    """Where the host is slow, a prompt of many rows goes beside few decodes' keys."""
    decodes, prompt = [make_chunk(1, 999) for _ in range(4)], make_chunk(100, 0)
    slow_host = RowSeconds(1e-6, 0.0, 0.0, 1e-3, 1e-3, 0.0, 0.0)
    groups = split_chunks([*decodes, prompt], 2, slow_host)
    assert sorted(sum(chunk.is_decode for chunk in group) for group in groups) == [2, 2]
    slow_device = RowSeconds(1e-3, 0.0, 0.0, 1e-9, 1e-9, 0.0, 0.0)
    groups = split_chunks([*decodes, prompt], 2, slow_device)
    assert sorted(sum(chunk.is_decode for chunk in group) for group in groups) == [0, 4]


@pytest.mark.parametrize("choose", [False, True])
def test_the_number_of_parts_is_the_plans_or_the_chosen_one(choose: bool) -> None:
    asked: list[tuple[StepShape, int]] = []

    class TwoAreBest(NoPrices):
        def best_parts(self, shape: StepShape, most: int) -> int:
            asked.append((shape, most))
            return min(2, most)

    plan = Plan(step_tokens=64, max_requests=8, kv_blocks=8, parts=4, choose_parts=choose)
    chunks = [make_chunk(1, 10) for _ in range(5)]
    assert len(split_step(chunks, plan, TwoAreBest())) == (2 if choose else 4)
    assert asked == ([(StepShape(5, 55, 0, 0, 5), 4)] if choose else [])
    assert len(split_step(chunks[:1], plan, TwoAreBest())) == 1
