"""Reads rows of stored tensors into memory: any number of threads, no copy of the file, every fault an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from moelens.checkpoint.faults import damaged, damaged_tensor
from moelens.checkpoint.jobs import Job, Span
from moelens.checkpoint.safetensors import StoredTensor
from moelens.memory.arena import Arena

_BLOCK_BYTES = 1 << 20  # read, converted and checked at a time, so that it stays in the core's cache
_SLICE = 1 << 14  # elements; torch spreads longer conversions over a thread pool, and here every thread is busy already

# The bits of the smallest number that is not finite (infinity), for the dtypes that weights are held in.
_INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}


class Scratch(threading.local):
    """Room for `elements` of `dtype` for each thread that asks, taken when it first does."""

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self._memory = Arena(elements * dtype.itemsize, purpose="packing the weights")
        self._dtype = dtype

    def take(self, elements: int) -> torch.Tensor:
        """A flat tensor, this thread's until it takes again."""
        return self._memory.view(0, self._dtype, (elements,))


def affordable_threads(weight_bytes: int, scratch_bytes: int) -> int:
    """How many threads may each take `scratch_bytes`: what they take together stays small beside the weights.

    It matters where an expert, which is packed whole, is large: one of Mixtral-8x22B's takes 400 MB.
    """
    allowed = weight_bytes // 20 + (128 << 20)
    return max(1, allowed // max(1, scratch_bytes))


class WeightReader:
    """Reads jobs' elements from `tensors`, converted to `dtype`; `close` it, or use it in a with statement."""

    def __init__(self, tensors: Mapping[str, StoredTensor], dtype: torch.dtype, scratch_elements: int) -> None:
        self._tensors = tensors
        self._dtype = dtype
        self._scratch = Scratch(scratch_elements, dtype)
        self._raw = Scratch(_BLOCK_BYTES, torch.uint8)
        self._files: dict[Path, int] = {}
        try:
            for path in {tensor.path for tensor in tensors.values()}:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise damaged(path, f"can't be opened ({error.strerror})", "check the disk, and `ulimit -n`") from error

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Idempotent."""
        while self._files:
            os.close(self._files.popitem()[1])

    @property
    def files(self) -> Mapping[Path, int]:
        """The open files' descriptors."""
        return self._files

    def work(self, job: Job, *, checked: bool = False) -> int:
        """Read `job`'s spans and put them where they belong; the number of bytes put there.

        Raises CheckpointError when a file ends early, can't be read or holds numbers that are not finite, which is not
        looked at where all were `checked` before.
        """
        flat = self._scratch.take(job.elements) if job.target is None else job.target
        position = 0
        for span in job.spans:
            self._read(span, flat[position : position + span.elements], checked)
            position += span.elements
        if job.pack is not None:
            job.pack(flat)
        return job.elements * self._dtype.itemsize

    def stretch(self, span: Span) -> tuple[int, int, int]:
        """Where a span lies: a file's descriptor, the offset in it and the length, in bytes."""
        tensor = self._tensors[span.name]
        assert tensor.torch_dtype is not None
        itemsize = tensor.torch_dtype.itemsize
        offset = tensor.begin + span.begin * span.columns * itemsize
        return self._files[tensor.path], offset, span.elements * itemsize

    def _read(self, span: Span, out: torch.Tensor, checked: bool) -> None:
        """Block by block: bytes, then numbers in the model's dtype, then the check that they are finite."""
        tensor = self._tensors[span.name]
        stored = tensor.torch_dtype
        assert stored is not None
        file, offset, _ = self.stretch(span)
        step = _BLOCK_BYTES // stored.itemsize
        for begin in range(0, out.numel(), step):
            block = out[begin : begin + step]
            nbytes = block.numel() * stored.itemsize
            raw = block.view(torch.uint8) if stored == self._dtype else self._raw.take(nbytes)
            _read_bytes(file, offset + begin * stored.itemsize, raw, tensor)
            if stored != self._dtype:
                _convert(raw.view(stored), block)
            if not checked:
                _check_finite(block, tensor)


def _read_bytes(file: int, offset: int, out: torch.Tensor, tensor: StoredTensor) -> None:
    """Fill `out` from `offset` of the file on."""
    buffer = out.numpy().data
    done = 0
    while done < len(buffer):
        try:
            n = os.preadv(file, [buffer[done:]], offset + done)
        except OSError as error:
            found = f"a read error at byte {offset + done} ({error.strerror})"
            raise damaged_tensor(tensor.path, tensor.name, "its data", found, "check the disk") from error
        if n == 0:
            found = f"the file's end at byte {offset + done}, so the file is truncated"
            raise damaged_tensor(tensor.path, tensor.name, f"data up to byte {tensor.end}", found)
        done += n


def _convert(source: torch.Tensor, out: torch.Tensor) -> None:
    """Round `source` to the nearest numbers of `out`'s dtype."""
    for begin in range(0, out.numel(), _SLICE):
        out[begin : begin + _SLICE].copy_(source[begin : begin + _SLICE])


def _check_finite(block: torch.Tensor, tensor: StoredTensor) -> None:
    """That no element is infinite or not a number, by its bits: they are the largest of each sign."""
    infinity = _INFINITY[block.dtype]
    sign = 1 << (8 * block.dtype.itemsize - 1)
    signed = block.view(torch.int16 if block.dtype.itemsize == 2 else torch.int32).numpy()
    unsigned = signed.view(np.uint16 if block.dtype.itemsize == 2 else np.uint32)
    if signed.max() >= infinity or unsigned.max() >= infinity | sign:
        found = f"infinity or NaN (as {str(block.dtype).removeprefix('torch.')})"
        raise damaged_tensor(tensor.path, tensor.name, "finite numbers", found)
