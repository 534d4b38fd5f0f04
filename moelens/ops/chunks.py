"""Small tensors that are cut from large ones, for calls of kernels that wait and hold many of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

Empty = Callable[[Sequence[int], torch.dtype], torch.Tensor]  # an uninitialised tensor of this shape and dtype

CHUNK_BYTES = 8 << 20
MOST_BYTES = CHUNK_BYTES // 4  # of a tensor that is cut from a chunk; larger ones have memory of their own
ALIGNMENT = 64


class Chunks:
    """Tensors one after another in chunks of CHUNK_BYTES, which are given back when none of their tensors is left.

    The C library, which is as quick, would give memory that many tensors leave at once back to the system, and get it
    again page by page.
    """

    def __init__(self, empty: Empty) -> None:
        """`empty` makes chunks and large tensors."""
        self._empty = empty
        self._chunk: dict[torch.dtype, torch.Tensor] = {}  # the current one, as seen by each dtype
        self._used_bytes = CHUNK_BYTES

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > MOST_BYTES:
            return self._empty(shape, dtype)
        begin = self._used_bytes
        if begin + nbytes > CHUNK_BYTES:
            self._chunk = {torch.uint8: self._empty((CHUNK_BYTES,), torch.uint8)}
            begin = 0
        self._used_bytes = begin + -(-nbytes // ALIGNMENT) * ALIGNMENT
        chunk = self._chunk.get(dtype)
        if chunk is None:
            chunk = self._chunk[dtype] = self._chunk[torch.uint8].view(dtype)
        strides = [1] * len(shape)
        for i in range(len(shape) - 1, 0, -1):
            strides[i - 1] = strides[i] * shape[i]
        return chunk.as_strided(tuple(shape), strides, begin // dtype.itemsize)
