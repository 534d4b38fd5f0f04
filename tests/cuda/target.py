"""Where the kernels' assertions run: on a GPU, or under emulation. Memory is fenced and poisoned."""

from __future__ import annotations

from types import ModuleType

import torch

from moelens.ops.cuda import CudaOps, ExpertProduct
from moelens.ops.native import NativeOps

FENCE_BYTES = 1024
FENCE = 0xFF  # a NaN, also where two halves of it meet


class Target(CudaOps):
    """The ops on a device, with a fence before and behind each tensor; results start as NaN.

    `check_fences` fails where something was written past a tensor's ends; what is read there is NaN. Under
    AddressSanitizer (`fenced` False) there are no fences but its own.
    """

    def __init__(
        self,
        device: torch.device,
        kernels: ModuleType | None,
        fenced: bool,
        expert_product: ExpertProduct = ExpertProduct.PANELS,
    ) -> None:
        super().__init__(NativeOps(1), device, kernels=kernels, expert_product=expert_product)
        self.device = device
        self.kernels = kernels
        self._fenced = fenced
        self._buffers: list[tuple[torch.Tensor, int]] = []

    def shuffle(self, seed: int) -> None:
        """Let threads and blocks run in another order, where that can be chosen."""
        if self.kernels is not None:
            self.kernels.set_seed(seed)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device."""
        out = self._empty(*tensor.shape, dtype=tensor.dtype)
        return out.copy_(tensor)

    def check_fences(self) -> None:
        for buffer, nbytes in self._buffers:
            rest = torch.cat([buffer[:FENCE_BYTES], buffer[FENCE_BYTES + nbytes :]])
            assert bool((rest == FENCE).all()), "written past the ends of a tensor"
        self._buffers.clear()

    def _empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        if not self._fenced:
            return torch.full((nbytes,), FENCE, dtype=torch.uint8, device=self.device).view(dtype).view(shape)
        buffer = torch.full((nbytes + 2 * FENCE_BYTES,), FENCE, dtype=torch.uint8, device=self.device)
        self._buffers.append((buffer, nbytes))
        return buffer[FENCE_BYTES : FENCE_BYTES + nbytes].view(dtype).view(shape)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double().cpu() - expected.double()).norm() / expected.double().norm())
