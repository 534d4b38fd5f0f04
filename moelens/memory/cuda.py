"""A GPU's memory, and the host memory that it copies from. No part of this has run on a GPU yet."""

from __future__ import annotations

import weakref

import torch

from moelens.errors import CapacityError
from moelens.memory.arena import Arena
from moelens.memory.pinned import CudaRegistrar, Registrar, StagingRing, pin, unpin

RING_BUFFERS = 3
RING_BUFFER_BYTES = 64 << 20
UTILIZATION = 0.9  # vLLM's default of gpu_memory_utilization


class CudaStore:
    """`nbytes` of a GPU's memory; copies go to the current stream and don't wait for it."""

    def __init__(self, nbytes: int, device: torch.device, weights: torch.Tensor) -> None:
        """`weights` are the host's bytes that most copies come from. Raises CapacityError when the GPU is too full."""
        self.nbytes = nbytes
        try:
            self._memory = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"The GPU has no {nbytes / 1e9:.2f} GB left: lower gpu_memory_bytes ({error})."
            ) from error
        self._registrar = CudaRegistrar()
        self._host_arenas: list[Arena] = []
        self._ring: StagingRing | None = None
        if pieces := pin(weights, self._registrar):
            weakref.finalize(self, _release, pieces, self._registrar, weights)
        else:
            self._ring = StagingRing(RING_BUFFERS, RING_BUFFER_BYTES, self._registrar)

    def view(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(shape).numel() * dtype.itemsize
        return self._memory[offset : offset + count].view(dtype).view(shape)

    def fill(self, offset: int, source: torch.Tensor) -> None:
        assert source.is_contiguous() and offset + source.nbytes <= self.nbytes
        flat = source.reshape(-1).view(torch.uint8)

        def start_copy(piece: torch.Tensor, begin: int) -> torch.cuda.Event:
            self._memory[offset + begin : offset + begin + piece.nbytes].copy_(piece, non_blocking=True)
            end = torch.cuda.Event()  # type: ignore[no-untyped-call]
            end.record(torch.cuda.current_stream(self._memory.device))
            return end

        if self._ring is None:
            start_copy(flat, 0)
        else:
            self._ring.copy(flat, start_copy)

    def fetch(self, source: torch.Tensor, target: torch.Tensor) -> None:
        assert source.is_contiguous() and source.nbytes <= target.nbytes
        target[: source.nbytes].copy_(source.reshape(-1).view(torch.uint8), non_blocking=True)
        source.record_stream(torch.cuda.current_stream(self._memory.device))  # its memory must not be given out before

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        arena = Arena(max(1, nbytes), purpose="rows from the GPU")
        self._host_arenas.append(arena)  # pinned memory must not be unmapped
        pin(arena.view(0, torch.uint8, (arena.nbytes,)), self._registrar)
        return arena.view(0, torch.uint8, (nbytes,))


def _release(pieces: list[int], registrar: Registrar, memory: torch.Tensor) -> None:
    """Unpin `memory`, which lives until then."""
    unpin(pieces, registrar)


def gpu_budget(free_bytes: int, total_bytes: int, utilization: float | None, asked_bytes: int | None) -> int:
    """Bytes that may be used: `asked_bytes`, or else `utilization` of all less what others hold.

    Raises CapacityError when that is more than is free, or nothing.
    """
    if asked_bytes is None:
        taken = total_bytes - free_bytes
        asked_bytes = int((UTILIZATION if utilization is None else utilization) * total_bytes) - taken
    if not 0 < asked_bytes <= free_bytes:
        raise CapacityError(
            f"The GPU has {free_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB free, which does not fit the "
            f"{asked_bytes / 1e9:.2f} GB asked for. End what else runs there, or set gpu_memory_bytes."
        )
    return asked_bytes
