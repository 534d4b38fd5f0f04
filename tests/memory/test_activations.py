"""The pool of activations: memory returns when a tensor's last view dies, is used again, and doesn't pile up."""

import gc

import pytest
import torch

from moelens.errors import CapacityError
from moelens.memory import activations
from moelens.memory.activations import LEAST_BYTES, PAGE_BYTES, ActivationPool
from moelens.memory.arena import Arena


def test_memory_returns_with_the_last_view_and_is_used_again():
    pool = ActivationPool()
    tensor = pool.empty((1024, 1100), torch.float32)
    assert tensor.shape == (1024, 1100) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    address, view = tensor.data_ptr(), tensor[5:7].view(-1)
    del tensor
    gc.collect()
    assert pool.free_bytes == 0
    view.fill_(3.0)
    del view
    gc.collect()
    assert pool.free_bytes == 3 * PAGE_BYTES
    again = pool.empty((1000, 1100), torch.float32)  # a little smaller
    assert again.data_ptr() == address and pool.free_bytes == 0


def test_tensors_that_live_together_share_no_memory():
    pool = ActivationPool()
    tensors = [pool.empty((LEAST_BYTES,), torch.uint8).fill_(i) for i in range(5)]
    assert all(bool((tensor == i).all()) for i, tensor in enumerate(tensors))


def test_a_small_tensor_takes_no_large_block():
    pool = ActivationPool()
    large = pool.empty((5 * PAGE_BYTES,), torch.uint8)
    address = large.data_ptr()
    del large
    assert pool.empty((LEAST_BYTES,), torch.uint8).data_ptr() != address
    assert pool.empty((LEAST_BYTES - 1,), torch.uint8).data_ptr() != address


def test_unused_memory_is_bounded_by_what_was_in_use():
    pool = ActivationPool()
    for pages in range(1, 40):  # no size fits the next but one
        pool.empty((pages * PAGE_BYTES,), torch.uint8)
    gc.collect()
    assert 0 < pool.free_bytes <= 39 * PAGE_BYTES


def test_what_is_used_again_stays_when_larger_blocks_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def arena(nbytes: int, purpose: str) -> Arena:
        made.append(nbytes)
        return Arena(nbytes, purpose=purpose)

    monkeypatch.setattr(activations, "Arena", arena)
    pool = ActivationPool()
    for pages in (9, 2, 2, 2):  # a prefill, and decodes after it
        pool.empty((pages * PAGE_BYTES,), torch.uint8)
        gc.collect()
    assert made == [9 * PAGE_BYTES, 2 * PAGE_BYTES]


def test_a_tensor_outlives_its_pool():
    tensor = ActivationPool().empty((2 * LEAST_BYTES,), torch.uint8)
    gc.collect()
    assert int(tensor.fill_(7).sum()) == 14 * LEAST_BYTES


def test_tensors_that_live_at_once_stay_within_the_limit():
    pool = ActivationPool(limit_bytes=3 * LEAST_BYTES)
    large, small = pool.empty((2 * LEAST_BYTES,), torch.uint8), pool.empty((LEAST_BYTES - 8, 1), torch.uint8)
    view = large[:1]
    del large
    said = rf"has {3 * LEAST_BYTES} bytes .*, but 9 more make it {3 * LEAST_BYTES + 1}\. Lower max_num_batched"
    with pytest.raises(CapacityError, match=said):
        pool.empty((9,), torch.uint8)
    assert pool.empty((4,), torch.bfloat16).shape == (4,)
    del view
    gc.collect()
    assert pool.empty((2 * LEAST_BYTES,), torch.uint8).shape == (2 * LEAST_BYTES,)
    assert small.shape == (LEAST_BYTES - 8, 1)
