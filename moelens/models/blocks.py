"""The computations that families are put together from: norms, the halves of a layer, feed-forward blocks, the ends.

Weights are found by the names that `tensors` gives them: attention_norm, qkv, qkv_bias, output, output_bias, ffn_norm,
router, experts.*, dense.*, embedding, final_norm, head. All blocks are values: two of equal parts are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from moelens.models.architecture import Routed, Weights
from moelens.models.config import GQA
from moelens.ops.interface import Activation, Ops, QKNorm, Rotation, Routing, RowNorm


class Norm(Protocol):
    """x [T, W], weight [W] -> [T, W]; `of` is the same for ops that begin with it."""

    def __call__(self, ops: Ops, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor: ...

    def of(self, weight: torch.Tensor) -> RowNorm: ...


@dataclass(frozen=True)
class RMSNorm:
    eps: float

    def __call__(self, ops: Ops, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, weight, self.eps)

    def of(self, weight: torch.Tensor) -> RowNorm:
        return RowNorm(weight, self.eps)


@dataclass(frozen=True)
class LayerNorm:
    eps: float

    def __call__(self, ops: Ops, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ops.layer_norm(x, weight, self.eps)

    def of(self, weight: torch.Tensor) -> RowNorm:
        return RowNorm(weight, self.eps, centred=True)


QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ProjectQKV:
    """Before attention: norm, one product for q, k and v, what the family does to them, rotary embedding.

    `qk_norm_eps` is of a family that normalises q and k, by the weights q_norm and k_norm (None: it doesn't); `limit`
    is what q, k and v are clipped to.
    """

    layers: tuple[GQA, ...]
    norm: Norm
    qk_norm_eps: float | None
    limit: float | None
    rotations: tuple[Rotation, ...] = field(compare=False)  # the layers', as the op takes them

    def __call__(self, ops: Ops, layer: int, weights: Weights, x: torch.Tensor, positions: torch.Tensor) -> QKV:
        attention, plain = self.layers[layer], weights.plain
        return ops.project_qkv(
            x,
            self.norm.of(plain["attention_norm"]),
            weights.matrix["qkv"],
            (attention.query_heads, attention.kv_heads),
            positions,
            self.rotations[layer],
            bias=plain.get("qkv_bias"),
            qk_norm=None if self.qk_norm_eps is None else QKNorm(plain["q_norm"], plain["k_norm"], self.qk_norm_eps),
            limit=self.limit,
        )


def project_qkv(
    layers: Sequence[GQA], norm: Norm, *, qk_norm_eps: float | None = None, limit: float | None = None
) -> ProjectQKV:
    """The first half of layers with this attention."""
    rotations = tuple(
        Rotation(torch.tensor(layer.rope.inverse_frequencies, dtype=torch.float32), layer.rope.magnitude)
        for layer in layers
    )
    return ProjectQKV(tuple(layers), norm, qk_norm_eps, limit, rotations)


class FeedForward(Protocol):
    """Takes normed and residual [T, H], and ids and scores [T, A] by the router `router` and the rule `routing` (None:
    there is no router), to residual + what the block makes of normed, [T, H].
    """

    @property
    def routing(self) -> Routing | None: ...

    def __call__(self, ops: Ops, weights: Weights, routed: Routed) -> torch.Tensor: ...


@dataclass(frozen=True)
class RoutedExperts:
    """A router and its experts; `scale` multiplies their sum."""

    routing: Routing
    activation: Activation
    scale: float = 1.0

    def __call__(self, ops: Ops, weights: Weights, routed: Routed) -> torch.Tensor:
        experts = weights.experts["experts"]
        assert routed.ids is not None and routed.scores is not None
        return ops.experts(
            *(routed.normed, experts, routed.ids, routed.scores, self.activation), residual=routed.x, scale=self.scale
        )


@dataclass(frozen=True)
class Dense:
    """A feed-forward block without a router: an expert that every row goes to."""

    activation: Activation

    @property
    def routing(self) -> None:
        return None

    def __call__(self, ops: Ops, weights: Weights, routed: Routed) -> torch.Tensor:
        normed, dense = routed.normed, weights.experts["dense"]
        everyone = normed.new_ones(len(normed), 1, dtype=torch.float32)
        return ops.experts(normed, dense, first_expert(normed), everyone, self.activation, residual=routed.x)


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
        return self.experts(ops, layer, weights, self.route(ops, layer, weights, x, attended))

    def route(self, ops: Ops, layer: int, weights: Weights, x: torch.Tensor, attended: torch.Tensor) -> Routed:
        output, bias = weights.matrix["output"], weights.plain.get("output_bias")
        attended, norm = attended.flatten(1), weights.plain["ffn_norm"]
        routing = self.layers[layer].routing
        if routing is None:
            x = ops.linear(attended, output, bias=bias, residual=x, scale=self.scale)
            return Routed(x, self.norm(ops, x, norm), None, None)
        router = weights.matrix["router"]
        return Routed(
            *ops.project_and_route(
                *(attended, output, x, self.norm.of(norm), router, routing), bias=bias, scale=self.scale
            )
        )

    def experts(self, ops: Ops, layer: int, weights: Weights, routed: Routed) -> torch.Tensor:
        return self.layers[layer](ops, weights, routed)


def look_up(ops: Ops, weights: Weights, token_ids: torch.Tensor) -> torch.Tensor:
    """The embedding as it is. In float32, as all of the residual stream is."""
    return ops.embed(weights.plain["embedding"], token_ids, dtype=torch.float32)


@dataclass(frozen=True)
class Head:
    """Final norm and head; `scale` multiplies the logits."""

    norm: Norm
    scale: float = 1.0

    def __call__(self, ops: Ops, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(ops, x, weights.plain["final_norm"])
        return ops.linear(normed, weights.matrix["head"], scale=self.scale, dtype=torch.float32)
