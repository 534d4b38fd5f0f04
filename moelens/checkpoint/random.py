"""Random weights in a model's shapes, for measuring speed where there is no checkpoint."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch

from moelens.checkpoint.jobs import Job, cut, run
from moelens.checkpoint.reading import Scratch, affordable_threads
from moelens.memory.weights import WeightStore, allocate
from moelens.models.architecture import Architecture
from moelens.ops.interface import Ops

_STD = 0.02  # what most models are initialised with
_POOL = (1 << 22) + 4099  # elements; a size that no row's length divides, so rows that wrap around differ


def random_weights(
    architecture: Architecture,
    ops: Ops,
    *,
    seed: int,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> WeightStore:
    """Weights of `architecture` that depend on `seed` only: norms are 1, all else is normal with deviation 0.02.

    Every stretch of weights is a window, at its own place, of one pool of random numbers: as fast as packing is, and
    rows differ. Raises CapacityError when the weights do not fit in memory.
    """
    store = allocate(architecture, ops)
    jobs = list(cut(architecture, store, ops))
    dtype = architecture.config.dtype
    scratch_elements = max((job.elements for job in jobs if job.target is None), default=0)
    source = _RandomSource(dtype, seed, scratch_elements)
    affordable = affordable_threads(store.nbytes, scratch_elements * dtype.itemsize)
    run(jobs, source.work, threads=min(threads, affordable), progress=progress)
    return store


class _RandomSource:
    """Fills jobs from a pool, as `WeightReader` fills them from files."""

    def __init__(self, dtype: torch.dtype, seed: int, scratch_elements: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._pool = _bits((torch.randn(_POOL, generator=generator) * _STD).to(dtype))
        self._scratch = Scratch(scratch_elements, dtype)
        self._seed = seed

    def work(self, job: Job) -> int:
        """Make `job`'s elements and put them where they belong; the number of bytes put there."""
        flat = self._scratch.take(job.elements) if job.target is None else job.target
        position = 0
        for span in job.spans:
            part = flat[position : position + span.elements]
            position += span.elements
            if span.columns == 1 and "norm" in span.name:
                part.fill_(1.0)
            else:
                self._fill(part, zlib.crc32(f"{self._seed} {span.name} {span.begin}".encode()) % _POOL)
        if job.pack is not None:
            job.pack(flat)
        return job.elements * flat.dtype.itemsize

    def _fill(self, out: torch.Tensor, begin: int) -> None:
        """Copy the pool from `begin` on, around and around; by numpy, as torch would spread it over more threads."""
        bits = _bits(out)
        done = 0
        while done < len(bits):
            n = min(len(bits) - done, _POOL - begin)
            bits[done : done + n] = self._pool[begin : begin + n]
            done, begin = done + n, 0


def _bits(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The same memory as integers of the same size, which numpy has for every dtype."""
    return tensor.view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32).numpy()
