"""Rows as 8-bit whole numbers: what products by int8 weights compute, in plain torch.

A row is taken as scale · q, q in [-127, 127], with its largest magnitude / 127 as scale. In a product the rows of both
sides are taken so; sums of whole numbers are exact, and only sum · (scale of x · scale of W) is rounded, in float32.
"""

from __future__ import annotations

import torch

SCALE_BYTES = 4  # behind the numbers of a row lie the bytes of its scale, as the reference stores it
LEAST_MAGNITUDE = 1e-30  # a row of smaller numbers is taken as zeros


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] -> q [T, K] int8 and scales [T, 1] float32; a row with a number that is not finite has scale NaN."""
    wide = x.float()
    magnitude = wide.abs().amax(-1, keepdim=True)
    magnitude = torch.where(magnitude.isfinite(), magnitude, torch.nan)
    small = magnitude < LEAST_MAGNITUDE
    most = torch.tensor(127.0)  # a tensor: torch takes number / tensor as a product with the reciprocal
    factor = torch.where(small | magnitude.isnan(), 0.0, most / magnitude)
    q = (wide * factor).round().nan_to_num(0.0)
    return q.to(torch.int8), torch.where(small, 0.0, magnitude / most)


def store(source: torch.Tensor, storage: torch.Tensor) -> None:
    """Rows [n, K] into storage [n, K + SCALE_BYTES] int8."""
    q, scales = quantize(source)
    storage[:, :-SCALE_BYTES] = q
    storage[:, -SCALE_BYTES:] = scales.contiguous().view(torch.int8)


def product(x: torch.Tensor, storage: torch.Tensor) -> torch.Tensor:
    """x [T, K], storage of W [N, K + SCALE_BYTES] -> x Wᵀ [T, N] in x's dtype; x is quantised, but not if float64."""
    weight = storage[:, :-SCALE_BYTES].double()
    scales = storage[:, -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)  # [N, 1]
    if x.dtype == torch.float64:
        return x @ (weight * scales.double()).T
    q, row_scales = quantize(x)
    return (q.double() @ weight.T).float() * (row_scales * scales.T)
