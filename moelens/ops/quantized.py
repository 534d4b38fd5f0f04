"""Numbers as 8-bit whole ones: what products by int8 weights compute, in plain torch.

Numbers are taken as scale · q, q in [-127, 127], with their largest magnitude / 127 as scale: all of a row of weights,
and of activations `GROUP` at a time, so that the few that are far larger than the rest spoil only their group. A
group's sums are whole numbers and exact; times the group's scale they are added in float32, in order, and the total is
multiplied by the row's scale of W.
"""

from __future__ import annotations

import torch

GROUP = 256  # activations that share a scale
SCALE_BYTES = 4  # behind the numbers of a row of weights lie the bytes of its scale, as the reference stores it
LEAST_MAGNITUDE = 1e-30  # smaller numbers are taken as zeros


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] -> q [T, K] int8 and scales [T, 1] float32: NaN for a row with a number that is not finite."""
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
    total = torch.zeros(len(x), len(weight))
    for begin in range(0, x.shape[1], GROUP):
        q, group_scales = quantize(x[:, begin : begin + GROUP])
        total += (q.double() @ weight[:, begin : begin + GROUP].T).float() * group_scales
    return total * scales.T
