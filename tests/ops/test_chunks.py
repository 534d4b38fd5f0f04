"""Tensors cut from chunks do not overlap, and a chunk lives as long as one of them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch

from moelens.ops.chunks import ALIGNMENT, CHUNK_BYTES, MOST_BYTES, Chunks


class Source:
    """Makes tensors, and knows of how many bytes they were."""

    def __init__(self) -> None:
        self.nbytes: list[int] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        made = torch.empty(tuple(shape), dtype=dtype)
        self.nbytes.append(made.nbytes)
        return made


def test_tensors_do_not_overlap_and_begin_at_multiples_of_64_bytes() -> None:
    chunks = Chunks(Source().empty)
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((3, 5, 7), torch.bfloat16),
        ((2, 9), torch.float32),
        ((0, 4), torch.float32),
        ((11,), torch.int32),
        ((4, 1, 6), torch.bfloat16),
    ]
    tensors = [chunks.empty(shape, dtype) for shape, dtype in shapes for _ in range(3)]
    for index, tensor in enumerate(tensors):
        tensor.fill_(index)
    for index, tensor in enumerate(tensors):
        shape, dtype = shapes[index // 3]
        assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
        assert tensor.data_ptr() % ALIGNMENT == 0
        assert torch.equal(tensor, torch.full(shape, index, dtype=dtype))


def test_a_full_chunk_is_followed_by_another_and_large_tensors_have_their_own() -> None:
    source = Source()
    chunks = Chunks(source.empty)
    kept = [chunks.empty((MOST_BYTES // 4,), torch.float32) for _ in range(CHUNK_BYTES // MOST_BYTES)]
    assert source.nbytes == [CHUNK_BYTES]
    chunks.empty((MOST_BYTES // 4 + 1,), torch.float32)
    assert source.nbytes == [CHUNK_BYTES, MOST_BYTES + 4]
    kept.append(chunks.empty((1,), torch.int32))
    assert source.nbytes[2:] == [CHUNK_BYTES]
    assert len({tensor.untyped_storage().data_ptr() for tensor in kept}) == 2


def test_a_chunk_is_given_back_with_its_last_tensor() -> None:
    alive: list[weakref.ref[memoryview]] = []

    def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        memory = memoryview(bytearray(CHUNK_BYTES))
        alive.append(weakref.ref(memory))
        return torch.frombuffer(memory, dtype=dtype)

    chunks = Chunks(empty)
    first = chunks.empty((MOST_BYTES,), torch.uint8)
    view = first[8:16].view(2, 4)
    for _ in range(CHUNK_BYTES // MOST_BYTES):
        chunks.empty((MOST_BYTES // 2,), torch.bfloat16)
    del first
    assert [one() is not None for one in alive] == [True, True]
    del view
    assert [one() is not None for one in alive] == [False, True]
