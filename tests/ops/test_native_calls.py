"""Calls of kernels that are deferred: they run in their order, keep what they use, and say when they ran."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
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


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_they_run_in_their_order_and_say_when(threads: int) -> None:
    ops = NativeOps(threads)
    for round_ in range(20):
        begin, x = time.perf_counter(), ones()
        with deferring(ops):
            assert ops.calls.deferring
            for _ in range(10):
                x = ops.scale(x, 2.0)
                if round_ % 2:
                    time.sleep(0.0003)  # longer than anyone waits for the next
            assert ops.calls.deferred == 10
        assert not ops.calls.deferring
        times = ops.calls.finish()
        moments = [begin, *(moment for pair in times for moment in pair), time.perf_counter()]
        assert torch.equal(x, 1024 * ones())
        assert len(times) == 10 and moments == sorted(moments)
        assert ops.calls.deferred == 0 and ops.calls.finish() == []


def test_they_run_while_python_goes_on() -> None:
    ops = NativeOps(2)
    with deferring(ops):
        doubled = ops.scale(ones(), 2.0)
        wait_for(lambda: doubled[-1] == 2.0, "a call waits though a thread is idle")
        quadrupled = ops.scale(doubled, 2.0)
        wait_for(lambda: quadrupled[-1] == 4.0, "a call waits that was added after the others had run")
    assert len(ops.calls.finish()) == 2


def test_without_another_thread_they_wait_until_they_are_asked_for() -> None:
    ops = NativeOps(1)
    with deferring(ops):
        doubled = ops.scale(ones(), 2.0).fill_(7.0)
    assert doubled[0] == 7.0
    ops.calls.finish()
    assert torch.equal(doubled, 2 * ones())


def test_one_that_is_not_deferred_comes_after_those_that_are() -> None:
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


def test_calls_of_other_threads_come_between() -> None:
    ops = NativeOps(2)
    stop, tripled = threading.Event(), []

    def triple() -> None:
        assert not ops.calls.deferring
        while not stop.is_set():
            tripled.append(torch.equal(ops.scale(ones(), 3.0), 3 * ones()))

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(triple)
        try:
            for _ in range(50):
                x = torch.ones(300_000)  # work for all threads
                with deferring(ops):
                    for _ in range(20):
                        x = ops.scale(x, 2.0)
                assert len(ops.calls.finish()) == 20
                assert torch.equal(x, torch.full_like(x, 2.0**20))
        finally:
            stop.set()
        other.result(timeout=60)
    assert tripled and all(tripled)


def test_the_bytes_that_they_use_are_known_but_for_weights() -> None:
    ops = NativeOps(2)
    storage = aligned_zeros(*ops.matrix_shape(64, 1000, torch.float32))
    assert ops.calls.deferred_bytes == 0
    with deferring(ops):
        scaled = ops.scale(ones(), 2.0)
        assert ops.calls.deferred_bytes == 2 * 4000
        ops.linear(scaled.view(1, -1), Matrix(storage, 64, 1000))
        assert ops.calls.deferred_bytes == 3 * 4000 + 4 * 64
        ops.embed(torch.ones(50, 8), torch.zeros(3, dtype=torch.int32))
        assert ops.calls.deferred_bytes == 3 * 4000 + 4 * 64 + 4 * 3 + 4 * 3 * 8, "the embedding's table counts"
    ops.calls.finish()
    assert ops.calls.deferred_bytes == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_one_that_fails_is_told_and_drops_those_after_it(threads: int) -> None:
    ops, x = NativeOps(threads), torch.randn(2, 64)
    gate_up = aligned_zeros(3, *ops.gate_up_shape(32, 64, x.dtype))
    experts = ExpertMatrices(gate_up, aligned_zeros(3, *ops.down_shape(64, 32, x.dtype)), 3, 32, 64)
    ids, scores = torch.full((2, 1), 3, dtype=torch.int32), torch.ones(2, 1)
    with deferring(ops):
        before = ops.scale(x, 2.0)
        ops.experts(x, experts, ids, scores, Activation.SILU)
        after = ops.scale(x, 3.0).fill_(7.0)
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
