"""Every request ends, every token is computed once between preemptions, and no block is lost or shared."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.errors import ValidationError
from moelens.plan import Plan
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.schedule.batch import shape_of
from moelens.schedule.scheduler import Scheduler, Step

BLOCK = 32


def make_request(request_id: int, prompt: int, output: int, **params: object) -> Request:
    ids = array("i", [1000 * request_id + i for i in range(prompt)])
    return Request(request_id, ids, SamplingParams(max_tokens=output, **params), seed=0)


def finish_at_max_tokens(request: Request) -> bool:
    if request.num_output_tokens == request.params.max_tokens:
        request.finish_reason = "length"
    return request.finished


def make_scheduler(**plan: int) -> Scheduler:
    values = {"step_tokens": 64, "max_requests": 8, "kv_blocks": 16, **plan}
    return Scheduler(Plan(**values), finish_at_max_tokens)


class Model:
    """Stands for the forward pass: checks what a step reads against what was written, and picks the next tokens."""

    def __init__(self) -> None:
        self.written: dict[int, tuple[int, int]] = {}  # slot -> (request, position)
        self.rows = 0

    def run(self, step: Step) -> dict[int, int]:
        tokens: dict[int, int] = {}
        for batch in step.parts:
            for index, chunk in enumerate(batch.chunks):
                begin, end = batch.attention.starts[index : index + 2].tolist()
                self._check_chunk(batch, chunk.running.request, index, begin, end)
            for row in batch.logit_rows:
                if row.prompt_position is None:
                    tokens[row.request.request_id] = 500 + row.request.num_output_tokens
            self.rows += batch.rows
        return tokens

    def _check_chunk(self, batch, request: Request, index: int, begin: int, end: int) -> None:
        known = [*request.prompt_token_ids, *request.output_token_ids]
        cached = int(batch.attention.cached[index])
        assert end > begin
        for row in range(begin, end):
            position = int(batch.positions[row])
            assert position == cached + row - begin
            assert int(batch.token_ids[row]) == known[position]
            self.written[int(batch.slots[row])] = (request.request_id, position)
        for position in range(cached + end - begin):  # every key that the last row sees is its own
            slot = int(batch.attention.block_ids[index, position // BLOCK]) * BLOCK + position % BLOCK
            assert self.written[slot] == (request.request_id, position)


def run_all(scheduler: Scheduler, each: Callable[[Step], None] = lambda step: None) -> tuple[list[Request], int]:
    model, finished, steps = Model(), [], 0
    while step := scheduler.next_step():
        each(step)
        finished += scheduler.commit(step, model.run(step))
        steps += 1
        assert steps < 10_000
    return finished, steps


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(6, 40),
    st.integers(1, 8),
    st.integers(8, 200),
    st.integers(1, 3),
)
def test_every_request_ends_with_all_its_tokens(lengths, blocks, max_requests, step_tokens, parts) -> None:
    scheduler = make_scheduler(kv_blocks=blocks, max_requests=max_requests, step_tokens=step_tokens, parts=parts)
    requests = [make_request(i, *length) for i, length in enumerate(lengths)]
    for request in requests:
        scheduler.add(request)

    def check(step: Step) -> None:
        assert sum(batch.rows for batch in step.parts) <= step_tokens
        assert len(step.chunks) <= max_requests
        assert 1 <= len(step.parts) <= parts
        for batch in step.parts:
            assert [c.is_decode for c in batch.chunks] == [True] * batch.decodes + [False] * (
                len(batch.chunks) - batch.decodes
            )
            assert batch.shape.decode_tokens == batch.decodes

    finished, _ = run_all(scheduler, check)
    assert sorted(r.request_id for r in finished) == list(range(len(requests)))
    for request, (_, output) in zip(requests, lengths, strict=True):
        assert list(request.output_token_ids) == [500 + i for i in range(output)]
    assert (scheduler.waiting, scheduler.running, scheduler.free_blocks) == (0, 0, blocks)


def test_decodes_and_a_new_prompt_share_a_step() -> None:
    scheduler = make_scheduler(step_tokens=40, max_requests=4)
    scheduler.add(make_request(0, 30, 5))
    model = Model()
    first = scheduler.next_step()
    scheduler.commit(first, model.run(first))
    scheduler.add(make_request(1, 100, 2))
    second = scheduler.next_step()
    assert [(c.running.request.request_id, c.count) for c in second.chunks] == [(0, 1), (1, 39)]
    (batch,) = second.parts
    assert (batch.shape.decode_tokens, batch.shape.decode_context) == (1, 31)
    assert (batch.shape.prefill_tokens, batch.shape.prefill_pairs) == (39, 39 * 40 // 2)
    assert [row.row for row in batch.logit_rows] == [0]
    scheduler.commit(second, model.run(second))
    third = scheduler.next_step()
    assert [(c.running.request.request_id, c.count) for c in third.chunks] == [(0, 1), (1, 39)]
    assert third.parts[0].shape.prefill_pairs == 39 * 39 + 39 * 40 // 2


def test_the_youngest_is_preempted_and_computed_again() -> None:
    scheduler = make_scheduler(kv_blocks=3, max_requests=2)
    old, young = make_request(0, 31, 40), make_request(1, 31, 20)
    for request in (old, young):
        scheduler.add(request)
    finished, _ = run_all(scheduler)
    assert finished == [old, young]
    assert (old.preemptions, young.preemptions, scheduler.preemptions) == (0, 1, 1)


def test_an_aborted_request_frees_its_blocks_and_is_told_so() -> None:
    scheduler = make_scheduler(max_requests=1)
    running, waiting = make_request(0, 40, 5), make_request(1, 40, 5)
    scheduler.add(running)
    scheduler.add(waiting)
    step = scheduler.next_step()
    scheduler.commit(step, Model().run(step))
    assert set(scheduler.abort([0, 1, 99])) == {running, waiting}
    assert running.finish_reason == waiting.finish_reason == "abort"
    assert (scheduler.waiting, scheduler.running, scheduler.free_blocks) == (0, 0, 16)
    assert scheduler.next_step() is None


def test_a_request_in_error_ends_without_a_token() -> None:
    scheduler = make_scheduler()
    good, bad = make_request(0, 4, 2), make_request(1, 4, 2)
    scheduler.add(good)
    scheduler.add(bad)
    step = scheduler.next_step()
    bad.finish_reason = "error"
    assert scheduler.commit(step, {0: 7, 1: -1}) == [bad]
    assert (list(good.output_token_ids), bad.num_output_tokens) == ([7], 0)


def test_prompt_logprobs_are_asked_for_once_per_token_over_chunks_and_preemption() -> None:
    scheduler = make_scheduler(step_tokens=8, max_requests=2)
    request = make_request(0, 20, 2, prompt_logprobs=1)
    scheduler.add(request)
    model, asked = Model(), []
    while step := scheduler.next_step():
        for batch in step.parts:
            for row in batch.logit_rows:
                if row.prompt_position is not None:
                    assert int(batch.positions[row.row]) == row.prompt_position - 1
                    asked.append(row.prompt_position)
        request.prompt_logprobs = [None] * (len(asked) + 1)
        scheduler.commit(step, model.run(step))
    assert asked == list(range(1, 20))


def test_a_request_that_could_never_fit_is_refused() -> None:
    scheduler = make_scheduler(kv_blocks=2)
    with pytest.raises(ValidationError, match=r"Request 3 has 64 tokens, but the key/value cache holds 64.*Shorten"):
        scheduler.add(make_request(3, 64, 1))
    scheduler.add(make_request(4, 63, 1))


def test_low_blocks_are_used_first() -> None:
    scheduler = make_scheduler(kv_blocks=1000)
    scheduler.add(make_request(0, 60, 2))
    step = scheduler.next_step()
    assert np.unique(step.parts[0].slots.numpy() // BLOCK).tolist() == [0, 1]


def alike(request_id: int, shared: int, own: int, output: int = 2, **params: object) -> Request:
    ids = array("i", [*range(shared), *(1000 * (request_id + 1) + i for i in range(own))])
    return Request(request_id, ids, SamplingParams(max_tokens=output, **params), seed=0)


class SharedModel(Model):
    """Requests may read what another wrote, as long as it is the same token after the same tokens."""

    def _check_chunk(self, batch, request: Request, index: int, begin: int, end: int) -> None:
        known = [*request.prompt_token_ids, *request.output_token_ids]
        cached = int(batch.attention.cached[index])
        for row in range(begin, end):
            self.written[int(batch.slots[row])] = tuple(known[: int(batch.positions[row]) + 1])
        for position in range(cached + end - begin):
            slot = int(batch.attention.block_ids[index, position // BLOCK]) * BLOCK + position % BLOCK
            assert self.written[slot] == tuple(known[: position + 1])


def test_a_common_beginning_is_computed_once() -> None:
    scheduler = make_scheduler(step_tokens=256, max_requests=8, kv_blocks=64)
    requests = [alike(i, 100, 20) for i in range(8)]
    for request in requests:
        scheduler.add(request)
    model = SharedModel()
    while step := scheduler.next_step():
        scheduler.commit(step, model.run(step))
    assert [request.num_cached_tokens for request in requests] == [0] + [96] * 7
    assert model.rows == 120 + 7 * 24 + 8  # prompts, and one decode each
    assert scheduler.free_blocks == 64


def test_others_go_first_while_a_beginning_is_being_computed() -> None:
    scheduler = make_scheduler(step_tokens=256, max_requests=8, kv_blocks=64)
    for request in (alike(0, 64, 1), alike(1, 64, 1), make_request(2, 10, 2)):
        scheduler.add(request)
    model = SharedModel()
    step = scheduler.next_step()
    assert [c.running.request.request_id for c in step.chunks] == [0, 2]
    scheduler.commit(step, model.run(step))
    step = scheduler.next_step()
    assert [(c.running.request.request_id, c.count) for c in step.chunks] == [(0, 1), (2, 1), (1, 1)]


def test_an_aborted_leader_leaves_its_beginning_to_the_next() -> None:
    scheduler = make_scheduler(step_tokens=40, max_requests=8, kv_blocks=64)
    leader, follower = alike(0, 96, 1), alike(1, 96, 1)
    scheduler.add(leader)
    scheduler.add(follower)
    model = SharedModel()
    step = scheduler.next_step()
    scheduler.commit(step, model.run(step))
    scheduler.abort([0])
    while step := scheduler.next_step():
        scheduler.commit(step, model.run(step))
    assert follower.finish_reason == "length"


def test_sharing_can_be_refused() -> None:
    sizes = {"step_tokens": 256, "kv_blocks": 64}
    for share, params in ((False, {}), (True, {"skip_reading_prefix_cache": True})):
        scheduler = make_scheduler(**sizes, share_prefixes=share)
        requests = [alike(i, 100, 20, **params) for i in range(3)]
        for request in requests:
            scheduler.add(request)
        while step := scheduler.next_step():
            scheduler.commit(step, {request.request_id: 5 for request in requests})
        assert scheduler.shared_tokens == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=10),
    st.integers(7, 40),
    st.integers(1, 6),
    st.integers(8, 150),
    st.integers(0, 30),
)
def test_whatever_is_shared_is_what_the_request_would_have_written(
    lengths, blocks, max_requests, step_tokens, retained
) -> None:
    plan = {"kv_blocks": blocks, "max_requests": max_requests, "step_tokens": step_tokens, "retained_blocks": retained}
    scheduler = make_scheduler(**plan)
    requests = [alike(i, *length) for i, length in enumerate(lengths)]
    for request in requests:
        scheduler.add(request)
    model, steps = SharedModel(), 0
    while step := scheduler.next_step():
        scheduler.commit(step, model.run(step))
        steps += 1
        assert steps < 10_000
    assert all(request.finish_reason == "length" for request in requests)
    assert scheduler.free_blocks == blocks


def test_a_step_without_layout_has_the_same_shape() -> None:
    plan = Plan(step_tokens=16, max_requests=4, kv_blocks=8, parts=2, share_prefixes=False)
    laid_out, bare = Scheduler(plan, finish_at_max_tokens), Scheduler(plan, finish_at_max_tokens)
    for scheduler in (laid_out, bare):
        for request_id, tokens in enumerate((40, 3, 20, 9, 1)):
            scheduler.add(make_request(request_id, tokens, output=3))
    tokens_of = dict.fromkeys(range(5), 1)
    while (step := laid_out.next_step()) is not None:
        groups = bare.next_chunks()
        assert [shape_of(group) for group in groups] == [part.shape for part in step.parts]
        done = laid_out.commit(step, tokens_of)
        assert len(bare.commit_chunks([chunk for group in groups for chunk in group], tokens_of)) == len(done)
    assert bare.next_chunks() == []
