"""Attention over keys and values that lie as rows, by torch's kernels: what a device does for the rows of prompts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch


def attend_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_starts: Sequence[int],
    key_starts: Sequence[int],
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """q [T, Q, D], k and v [C, K, D] -> [T, Q, D]: the rows of request s attend to its keys, aligned at their ends.

    Rows query_starts[s] … query_starts[s+1]-1 of q are the last tokens of the keys key_starts[s] … key_starts[s+1]-1.
    A request is attended by itself, so the other requests don't change its bits.
    """
    out = torch.empty_like(q)
    for s in range(len(query_starts) - 1):
        rows = slice(query_starts[s], query_starts[s + 1])
        keys = slice(key_starts[s], key_starts[s + 1])
        out[rows] = _attend(q[rows], k[keys], v[keys], scale, window)
    return out


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
    """One request: q [n, Q, D], k and v [c, K, D] -> [n, Q, D]."""
    rows, context = q.shape[0], k.shape[0]
    mask = None
    if rows < context or (window is not None and window < context):
        positions = torch.arange(context - rows, context, device=q.device)
        distance = positions[:, None] - torch.arange(context, device=q.device)
        mask = distance >= 0
        if window is not None:
            mask &= distance < window
    # Without a mask torch may take its flash attention, which is faster and needs no scores [n, c].
    attended = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended[0].transpose(0, 1)


def attend_rows_at_once(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_starts: Sequence[int],
    key_starts: Sequence[int],
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """The same by one call of torch's varlen attention, which runs on CUDA devices only (torch 2.13 or newer)."""
    from torch.nn.attention.varlen import varlen_attn

    def longest(starts: Sequence[int]) -> int:
        return max(end - begin for begin, end in itertools.pairwise(starts))

    attended = varlen_attn(
        q,
        k,
        v,
        torch.tensor(query_starts, dtype=torch.int32, device=q.device),
        torch.tensor(key_starts, dtype=torch.int32, device=q.device),
        longest(query_starts),
        longest(key_starts),
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(attended, torch.Tensor)  # a tuple only where more was asked for
    return attended


def has_varlen_attention() -> bool:
    """Whether this torch has varlen attention with different numbers of query and KV heads."""
    import importlib.util
    import inspect

    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()
