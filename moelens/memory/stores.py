"""A device's own memory of a fixed size, with copies to and from it."""

from __future__ import annotations

import ctypes
from typing import Protocol

import torch

from moelens.memory.arena import Arena


class Store(Protocol):
    """Bytes of a device. All tensors given to it are contiguous."""

    @property
    def nbytes(self) -> int: ...

    def view(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor over the bytes from `offset` on, a multiple of 64; all were zero at first."""

    def fill(self, offset: int, source: torch.Tensor) -> None:
        """Copy a host tensor to the bytes from `offset` on."""

    def fetch(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy a device tensor to the first bytes of `target`, uint8 on the host."""

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        """Host memory that copies are fast to, uint8 [nbytes]; its content is undefined."""


class ArenaStore:
    """A device that is emulated: an arena of its own, and real copies. Raises CapacityError where there is no room."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._arena = Arena(nbytes, purpose="the device")
        self._begin = self._arena.view(0, torch.uint8, (nbytes,)).data_ptr()

    def view(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        return self._arena.view(offset, dtype, shape)

    def fill(self, offset: int, source: torch.Tensor) -> None:
        assert source.is_contiguous() and offset + source.nbytes <= self.nbytes
        ctypes.memmove(self._begin + offset, source.data_ptr(), source.nbytes)

    def fetch(self, source: torch.Tensor, target: torch.Tensor) -> None:
        assert source.is_contiguous() and source.nbytes <= target.nbytes
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)
