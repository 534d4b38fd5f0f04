"""A second implementation of `experts` for devices: torch's grouped product, on weights that are unpacked first.

It gives up two things that the panels' kernel keeps: gate and up are rounded before they are multiplied, and what a row
gets may depend on the rows beside it, since torch chooses its kernels by the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from moelens.errors import KernelError
from moelens.ops.interface import Activation, ExpertMatrices

HALF_PANEL = 16  # columns of gate, and of up, in a panel


def grouped_mm_experts(
    x: torch.Tensor,
    weights: ExpertMatrices,
    ids: torch.Tensor,
    scores: torch.Tensor,
    activation: Activation,
    residual: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """As `Ops.experts`, bfloat16 only; needs the layer's experts a second time in the device's memory.

    Raises KernelError where torch has no grouped product.
    """
    multiply = _grouped_product()
    tokens, active = ids.shape
    order = torch.argsort(ids.flatten(), stable=True)
    counts = torch.bincount(ids.flatten(), minlength=weights.experts)
    ends = counts.cumsum(0).to(torch.int32)
    rows = x[order // active]
    panels = _unpack(weights.gate_up, weights.hidden).view(weights.experts, -1, 2, HALF_PANEL, weights.hidden)
    gate, up = (
        multiply(rows, panels[:, :, half].flatten(1, 2)[:, : weights.width].transpose(1, 2), ends) for half in (0, 1)
    )
    inner = (_activate(gate.float(), activation) * up.float()).to(x.dtype)
    down = _unpack(weights.down, weights.width)[:, : weights.hidden].transpose(1, 2)
    terms = x.new_empty(tokens * active, weights.hidden, dtype=torch.float32)
    terms[order] = multiply(inner, down, ends).float() * scores.flatten()[order, None]
    total = terms.view(tokens, active, -1).sum(1)
    dtype = x.dtype if residual is None else residual.dtype
    return (scale * total if residual is None else residual.float() + scale * total).to(dtype)


def _grouped_product() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """(rows [P, K], matrices [E, K, N], the end of each group [E] int32) -> [P, N]."""
    product = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if product is None:
        raise KernelError(f"torch {torch.__version__} has no grouped product; use torch 2.9 or newer, or the panels.")
    return lambda rows, matrices, ends: product(rows, matrices, offs=ends)


def _unpack(storage: torch.Tensor, columns: int) -> torch.Tensor:
    """Panels [E, P, K/2, 32, 2] -> matrices [E, 32 P, K], a copy."""
    experts, panels, steps, lanes, pair = storage.shape
    return storage.permute(0, 1, 3, 2, 4).reshape(experts, panels * lanes, steps * pair)[..., :columns]


def _activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation is Activation.SILU:
        return torch.nn.functional.silu(x)
    return torch.nn.functional.gelu(x, approximate="tanh" if activation is Activation.GELU_TANH else "none")
