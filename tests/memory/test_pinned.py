"""Pinning in pieces, and what is done where the system refuses it."""

from __future__ import annotations

import pytest
import torch

from moelens.errors import CapacityError
from moelens.memory.arena import Arena
from moelens.memory.cuda import gpu_budget
from moelens.memory.pinned import StagingRing, pin

PAGE = 4096


class FakeRegistrar:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pieces: dict[int, int] = {}

    def register(self, address: int, nbytes: int) -> int:
        assert address % PAGE == 0 and nbytes % PAGE == 0
        if sum(self.pieces.values()) + nbytes > self.limit:
            return 2
        self.pieces[address] = nbytes
        return 0

    def unregister(self, address: int) -> None:
        del self.pieces[address]


def test_all_pages_are_pinned_in_pieces() -> None:
    memory = Arena(10 * PAGE).view(64, torch.uint8, (9 * PAGE,))
    registrar = FakeRegistrar(1 << 30)
    assert pin(memory, registrar, 4 * PAGE)
    assert list(registrar.pieces.values()) == [4 * PAGE, 4 * PAGE, 2 * PAGE]
    assert min(registrar.pieces) <= memory.data_ptr()
    assert max(a + n for a, n in registrar.pieces.items()) >= memory.data_ptr() + memory.nbytes


def test_a_refusal_leaves_nothing_pinned(caplog: pytest.LogCaptureFixture) -> None:
    memory = Arena(10 * PAGE).view(0, torch.uint8, (10 * PAGE,))
    registrar = FakeRegistrar(7 * PAGE)
    assert not pin(memory, registrar, 4 * PAGE)
    assert not registrar.pieces and "ulimit -l" in caplog.text and "CUDA error 2" in caplog.text


class LateCopy:
    """A copy that happens when it is waited for, so that a buffer filled too early would show."""

    def __init__(self, piece: torch.Tensor, target: torch.Tensor) -> None:
        self._piece, self._target = piece, target

    def synchronize(self) -> None:
        self._target.copy_(self._piece)


@pytest.mark.parametrize(("limit", "pinned"), [(1 << 30, True), (PAGE, False)])
def test_the_ring_moves_everything_and_reuses_a_buffer_only_when_it_has_been_copied(limit: int, pinned: bool) -> None:
    ring = StagingRing(2, PAGE, FakeRegistrar(limit))
    assert ring.is_pinned == pinned
    source = torch.randint(0, 256, (7 * PAGE + 100,), dtype=torch.uint8)
    target = torch.zeros_like(source)
    copies: list[LateCopy] = []

    def start_copy(piece: torch.Tensor, begin: int) -> LateCopy:
        copies.append(LateCopy(piece, target[begin : begin + piece.nbytes]))
        return copies[-1]

    ring.copy(source, start_copy)
    for copy in copies[-2:]:
        copy.synchronize()
    assert torch.equal(source, target) and len(copies) == (8 if pinned else 1)


def test_the_gpus_budget() -> None:
    assert gpu_budget(20 * 10**9, 24 * 10**9, None, None) == int(0.9 * 24e9) - 4 * 10**9
    assert gpu_budget(20 * 10**9, 24 * 10**9, 0.5, None) == 8 * 10**9
    assert gpu_budget(20 * 10**9, 24 * 10**9, 0.5, 123) == 123
    for utilization, asked in ((0.1, None), (None, 21 * 10**9)):
        with pytest.raises(CapacityError, match=r"20\.00 of 24\.00 GB free"):
            gpu_budget(20 * 10**9, 24 * 10**9, utilization, asked)
