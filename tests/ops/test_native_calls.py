"""Calls of kernels that are deferred: they wait, run in their order, keep what they use, and say when they ran."""

from __future__ import annotations

import gc
import math
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from moelens.memory.arena import Arena
from moelens.ops.interface import Activation, ExpertMatrices, Matrix
from moelens.ops.native import NativeOps


@contextmanager
def deferring(ops: NativeOps) -> Iterator[None]:
    ops.calls.deferring = True
    try:
        yield
    finally:
        ops.calls.deferring = False


def aligned_zeros(*shape: int) -> torch.Tensor:
    return Arena(4 * math.prod(shape), purpose="test").view(0, torch.float32, shape).zero_()


def ones() -> torch.Tensor:
    return torch.ones(1000)


def test_they_wait_until_they_are_asked_for_and_run_in_their_order() -> None:
    ops = NativeOps(2)
    with deferring(ops):
        doubled = ops.scale(ones(), 2.0).fill_(7.0)
        assert ops.calls.deferring
        quadrupled = ops.scale(doubled, 2.0).fill_(7.0)
        assert ops.calls.deferred == 2
        assert doubled[0] == quadrupled[0] == 7.0, "a call that was to wait ran at once"
    assert not ops.calls.deferring
    begin = time.perf_counter()
    times = ops.calls.finish()
    end = time.perf_counter()
    assert torch.equal(quadrupled, 4 * ones())
    moments = [moment for pair in times for moment in pair]
    assert len(times) == 2 and [begin, *moments, end] == sorted([begin, *moments, end])
    assert ops.calls.deferred == 0 and ops.calls.finish() == []


def test_one_that_does_not_wait_comes_after_those_that_do() -> None:
    ops = NativeOps(2)
    with deferring(ops):
        doubled = ops.scale(ones(), 2.0)
    assert torch.equal(ops.scale(doubled, 2.0), 4 * ones())
    assert ops.calls.deferred == len(ops.calls.finish()) == 1


def test_tensors_live_until_the_calls_that_use_them_have_run() -> None:
    ops, x = NativeOps(2), ones()
    references = [weakref.ref(x)]
    with deferring(ops):
        doubled = ops.scale(x, 2.0)
        references.append(weakref.ref(doubled))
        quadrupled = ops.scale(doubled, 2.0)
    del x, doubled
    gc.collect()
    assert all(reference() is not None for reference in references)
    ops.calls.finish()
    assert torch.equal(quadrupled, 4 * ones())
    assert all(reference() is None for reference in references)


def test_calls_of_other_threads_run_at_once() -> None:
    ops = NativeOps(2)
    with ThreadPoolExecutor(1) as pool, deferring(ops):
        doubled = ops.scale(ones(), 2.0).fill_(7.0)
        assert torch.equal(pool.submit(lambda: ops.scale(ones(), 3.0)).result(), 3 * ones())
        assert doubled[0] == 7.0, "another thread's call ran what waits"
        assert not pool.submit(lambda: ops.calls.deferring).result()


def test_the_bytes_that_they_use_are_known_but_for_weights() -> None:
    ops = NativeOps(2)
    storage = aligned_zeros(*ops.matrix_shape(64, 1000, torch.float32))
    assert ops.calls.waiting_bytes == 0
    with deferring(ops):
        scaled = ops.scale(ones(), 2.0)
        assert ops.calls.waiting_bytes == 2 * 4000
        ops.linear(scaled.view(1, -1), Matrix(storage, 64, 1000))
        assert ops.calls.waiting_bytes == 3 * 4000 + 4 * 64
    ops.calls.finish()
    assert ops.calls.waiting_bytes == 0


def test_one_that_fails_is_told_and_drops_those_after_it() -> None:
    ops, x = NativeOps(2), torch.randn(2, 64)
    gate_up = aligned_zeros(3, *ops.gate_up_shape(32, 64, x.dtype))
    experts = ExpertMatrices(gate_up, aligned_zeros(3, *ops.down_shape(64, 32, x.dtype)), 3, 32, 64)
    ids, scores = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)
    with deferring(ops):
        before = ops.scale(x, 2.0)
        ops.experts(x, experts, ids, scores, Activation.SILU)
        after = ops.scale(x, 3.0).fill_(7.0)
        ids.fill_(3)  # as a router would that came before
    with pytest.raises(ValueError, match=r"experts: ids must be in \[0, 3\), found 3"):
        ops.calls.finish()
    assert torch.equal(before, 2 * x) and after[0, 0] == 7.0
    assert len(ops.calls.finish()) == 1, "the call before the one that failed"
    assert torch.equal(ops.scale(x, 2.0), 2 * x)


def test_what_is_wrong_with_arguments_is_told_at_once() -> None:
    ops = NativeOps(2)
    with deferring(ops), pytest.raises(ValueError, match="norm: "):
        ops.rms_norm(torch.ones(2, 8), torch.ones(9), 1e-6)
    assert ops.calls.finish() == []
