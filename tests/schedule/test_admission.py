"""Requests whose ends are known are let in so that nobody is preempted, and the cache is used all the same."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.plan import Plan
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.schedule.admission import KNOWN, BlockDemand, OutputLengths
from moelens.schedule.scheduler import Scheduler


class Tokens(dict[int, int]):
    def __missing__(self, key: int) -> int:
        return 0


def run(
    lengths: list[tuple[int, int]], plan: Plan, *, known: bool = True, ends: dict[int, int] | None = None
) -> tuple[Scheduler, list[int]]:
    """The scheduler after all requests, and the blocks held in each step; `ends`: outputs that end before the limit."""

    def finish(request: Request) -> bool:
        if request.num_output_tokens < (ends or {}).get(request.request_id, request.params.max_tokens or 0):
            return False
        request.finish_reason = "stop" if ends else "length"
        return True

    scheduler, held = Scheduler(plan, finish), []
    for index, (prompt, output) in enumerate(lengths):
        params = SamplingParams(max_tokens=output, ignore_eos=known)
        scheduler.add(Request(index, array("i", [index] * prompt), params, seed=0))
    while groups := scheduler.next_chunks():
        held.append(plan.kv_blocks - scheduler.free_blocks)
        assert len(held) < 20_000
        scheduler.commit_chunks([chunk for group in groups for chunk in group], Tokens())
    return scheduler, held


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 90)), min_size=1, max_size=40),
    st.integers(6, 30),
)
def test_known_ends_are_never_preempted(lengths: list[tuple[int, int]], blocks: int) -> None:
    plan = Plan(4000, max_requests=8, kv_blocks=blocks, share_prefixes=False)
    scheduler, _ = run(lengths, plan)
    assert scheduler.preemptions == 0


def test_requests_are_let_in_at_a_pace_that_keeps_the_cache_full() -> None:
    plan = Plan(2000, max_requests=200, kv_blocks=120, share_prefixes=False)
    scheduler, held = run([(32, 128)] * 400, plan)
    steady = held[128:-128]
    assert scheduler.preemptions == 0
    assert sum(steady) / len(steady) > 0.9 * plan.kv_blocks
    area = sum(-(-(32 + j) // 32) for j in range(128))
    assert len(held) < 1.05 * (400 * area / plan.kv_blocks + 128)  # what the pace and one drain take


def test_what_fits_at_once_begins_at_once() -> None:
    plan = Plan(2000, max_requests=200, kv_blocks=100, share_prefixes=False)
    _, held = run([(32, 96)] * 25, plan)  # at their longest all of them take the whole cache
    assert len(held) == 96


def test_unknown_ends_are_learned_from_those_that_have_ended() -> None:
    plan = Plan(2000, max_requests=64, kv_blocks=64, share_prefixes=False)
    early = dict.fromkeys(range(300), 40)
    scheduler, held = run([(32, 1000)] * 300, plan, known=False, ends=early)
    _, ideal = run([(32, 40)] * 300, plan)
    assert len(held) < 1.25 * len(ideal)
    assert scheduler.preemptions < 30


def test_the_mean_of_outputs_is_bounded_by_limits() -> None:
    lengths = OutputLengths()
    request = Request(0, array("i", [1]), SamplingParams(max_tokens=100), seed=0)
    assert lengths.left(request, 10**6) == 100
    ended = Request(1, array("i", [1]), SamplingParams(max_tokens=1000), seed=0)
    ended.output_token_ids.extend([0] * 40)
    for _ in range(KNOWN):
        lengths.observe(ended)
    assert lengths.left(request, 10**6) == 40
    assert lengths.left(request, 7) == 7
    request.output_token_ids.extend([0] * 60)
    assert lengths.left(request, 10**6) == 10  # a quarter of the mean
    exact = Request(2, array("i", [1]), SamplingParams(max_tokens=100, ignore_eos=True), seed=0)
    assert lengths.left(exact, 10**6) == 100


def test_demand_by_hand() -> None:
    demand = BlockDemand(kv_blocks=5, block_tokens=32, requests=4)
    demand.start(0, tokens=32, left=3, shared=0, waiting=1)  # 1, 2 and 2 blocks in this step and the next two
    assert demand.fits(64, 2, 0, waiting=1)  # 2 and 3
    demand.start(1, 64, 2, 0, waiting=1)
    assert not demand.fits(32, 2, 0, waiting=1)  # 1 and 2: seven blocks in the next step
    demand.step()
    demand.end(1)
    assert demand.fits(32, 2, 0, waiting=1)  # 1 and 2 beside 2 and 2


def test_a_delayed_prompt_is_counted_for_longer() -> None:
    demand = BlockDemand(kv_blocks=4, block_tokens=32, requests=2)
    demand.start(0, tokens=64, left=2, shared=0, waiting=1)  # at the end 3 blocks
    demand.delay(0)
    demand.step()
    assert not demand.fits(32, 2, 0, waiting=1)
    demand.step()
    assert demand.fits(32, 2, 0, waiting=1)  # its last step is this one
