"""The computations that families are put together from: norms, the halves of a layer, feed-forward blocks, the ends.

Weights are found by the names that `tensors` gives them: attention_norm, qkv, qkv_bias, output, output_bias, ffn_norm,
router, experts.*, dense.*, embedding, final_norm, head. All blocks are values: two of equal parts are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from moelens.models.architecture import Weights
from moelens.models.config import GQA
from moelens.ops.interface import Activation, Ops, Routing


class Norm(Protocol):
    """x [T, W], weight [W] -> [T, W]."""

    def __call__(self, ops: Ops, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class RMSNorm:
    eps: float

    def __call__(self, ops: Ops, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, weight, self.eps)


@dataclass(frozen=True)
class LayerNorm:
    eps: float

    def __call__(self, ops: Ops, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ops.layer_norm(x, weight, self.eps)


QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Adjust(Protocol):
    """What a family does to q [T, Q·D], k and v [T, K·D] between projection and rotary embedding."""

    def __call__(self, ops: Ops, weights: Weights, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> QKV: ...


def leave(ops: Ops, weights: Weights, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> QKV:
    """Nothing."""
    return q, k, v


@dataclass(frozen=True)
class Clamp:
    """Every element held to [-limit, limit]."""

    limit: float

    def __call__(self, ops: Ops, weights: Weights, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> QKV:
        return ops.clamp(q, self.limit), ops.clamp(k, self.limit), ops.clamp(v, self.limit)


@dataclass(frozen=True)
class ProjectQKV:
    """Before attention: norm, one product for q, k and v, what the family does to them, rotary embedding.

    `product_dtype` is what they are kept in on the way (None: the weights'). float32 is worth its memory traffic where
    q and k are normalised before they turn, as it saves two of three roundings.
    """

    layers: tuple[GQA, ...]
    norm: Norm
    adjust: Adjust
    product_dtype: torch.dtype | None
    inverse_frequencies: tuple[torch.Tensor, ...] = field(compare=False)  # the layers', as the op takes them

    def __call__(self, ops: Ops, layer: int, weights: Weights, x: torch.Tensor, positions: torch.Tensor) -> QKV:
        attention, frequencies = self.layers[layer], self.inverse_frequencies[layer]
        normed = self.norm(ops, x, weights.plain["attention_norm"])
        bias = weights.plain.get("qkv_bias")
        joined = ops.linear(normed, weights.matrix["qkv"], bias=bias, dtype=self.product_dtype)
        heads = (attention.query_heads, attention.kv_heads, attention.kv_heads)
        parts = torch.split(joined, [count * attention.head_dim for count in heads], dim=1)
        flat = self.adjust(ops, weights, *(part.contiguous() for part in parts))
        q, k, v = (y.view(-1, count, attention.head_dim) for y, count in zip(flat, heads, strict=True))
        magnitude = attention.rope.magnitude
        q = ops.rotary(q, positions, frequencies, magnitude)
        k = ops.rotary(k, positions, frequencies, magnitude)
        return q.to(normed.dtype), k.to(normed.dtype), v.to(normed.dtype)


def project_qkv(
    layers: Sequence[GQA], norm: Norm, adjust: Adjust = leave, product_dtype: torch.dtype | None = None
) -> ProjectQKV:
    """The first half of layers with this attention."""
    frequencies = tuple(torch.tensor(layer.rope.inverse_frequencies, dtype=torch.float32) for layer in layers)
    return ProjectQKV(tuple(layers), norm, adjust, product_dtype, frequencies)


class FeedForward(Protocol):
    """normed [T, H], residual [T, H] -> residual + what the block makes of normed, [T, H]."""

    def __call__(self, ops: Ops, weights: Weights, normed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class RoutedExperts:
    """A router and its experts; `scale` multiplies their sum."""

    routing: Routing
    activation: Activation
    scale: float = 1.0

    def __call__(self, ops: Ops, weights: Weights, normed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        logits = ops.linear(normed, weights.matrix["router"], dtype=torch.float32)
        ids, scores = ops.route(logits, self.routing)
        experts = weights.experts["experts"]
        return ops.experts(normed, experts, ids, scores, self.activation, residual=residual, scale=self.scale)


@dataclass(frozen=True)
class Dense:
    """A feed-forward block without a router: an expert that every row goes to."""

    activation: Activation

    def __call__(self, ops: Ops, weights: Weights, normed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        everyone = normed.new_ones(len(normed), 1, dtype=torch.float32)
        ids = first_expert(normed)
        return ops.experts(normed, weights.experts["dense"], ids, everyone, self.activation, residual=residual)


def first_expert(x: torch.Tensor) -> torch.Tensor:
    """Ids [T, 1] that send every row to expert 0."""
    return x.new_zeros(len(x), 1, dtype=torch.int32)


@dataclass(frozen=True)
class FinishLayer:
    """After attention: output projection and feed-forward, each with its residual; `scale` multiplies the former's."""

    norm: Norm
    layers: tuple[FeedForward, ...]
    scale: float = 1.0

    def __call__(self, ops: Ops, layer: int, weights: Weights, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        output, bias = weights.matrix["output"], weights.plain.get("output_bias")
        x = ops.linear(attended.flatten(1), output, bias=bias, residual=x, scale=self.scale)
        normed = self.norm(ops, x, weights.plain["ffn_norm"])
        return self.layers[layer](ops, weights, normed, x)


def look_up(ops: Ops, weights: Weights, token_ids: torch.Tensor) -> torch.Tensor:
    """The embedding as it is. In float32, as all of the residual stream is."""
    return ops.embed(weights.plain["embedding"], token_ids).float()


@dataclass(frozen=True)
class Head:
    """Final norm and head; `scale` multiplies the logits."""

    norm: Norm
    scale: float = 1.0

    def __call__(self, ops: Ops, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(ops, x, weights.plain["final_norm"])
        return ops.linear(normed, weights.matrix["head"], scale=self.scale, dtype=torch.float32)
