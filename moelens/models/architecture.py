"""What it takes to run a family of models: where its tensors lie on disk, and the two halves of a layer.

A layer is cut at attention, the only operation that looks at other rows, needs the cache and changes processor:
`before_attention` and `after_attention` are row-wise. Adding a model is one file that makes an `Architecture`;
`docs/adding_a_model.md` shows how.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from moelens.models.config import ModelConfig
from moelens.ops.interface import ExpertMatrices, Matrix, Ops


class Form(enum.Enum):
    """How a tensor is stored in memory: as it is, or in the order that the ops' products read it."""

    PLAIN = "plain"  # a vector or table, row-major
    MATRIX = "matrix"  # [N, K], the weight of y = x Wᵀ
    GATE_UP = "gate_up"  # [E, 2, I, K], gate and up of every expert
    DOWN = "down"  # [E, N, I], the down projection of every expert


@dataclass(frozen=True)
class Piece:
    """Rows of one checkpoint tensor.

    `shape` is the whole tensor's shape as the file must state it. All dimensions but the last are taken together as
    rows (a vector's elements are its rows); `rows` picks [begin, end) of them (None: all). `transposed` says that the
    piece, as picked, is the transpose of what is wanted.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that the model uses, and the pieces of the checkpoint that it is made of.

    `shape` is logical: PLAIN any, MATRIX [N, K], GATE_UP [E, 2, I, K], DOWN [E, N, I]. Pieces are joined on the row
    dimension, in order; for GATE_UP they are gate 0, up 0, gate 1, up 1, …, for DOWN one per expert. `dtype` is what it
    is kept in: the model's own (None), or int8 of a model that is quantised as it is loaded.
    """

    name: str
    form: Form
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Weights:
    """The tensors of one layer (or the resident ones), ready for `Ops`, by the names of their `TensorSpec`s.

    The views may live in a ring slot that is filled again soon: use them, don't keep them.
    """

    plain: Mapping[str, torch.Tensor] = field(default_factory=dict)
    matrix: Mapping[str, Matrix] = field(default_factory=dict)
    experts: Mapping[str, ExpertMatrices] = field(default_factory=dict)


class BeforeAttention(Protocol):
    """Norm, projections and rotary embedding of one layer.

    x [T, H], positions [T] int32 -> q [T, Q, D], k [T, K, D], v [T, K, D].
    """

    def __call__(
        self, ops: Ops, layer: int, weights: Weights, x: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True)
class Routed:
    """Rows between a layer's router and its experts.

    x [T, H] is the residual stream, normed [T, H] what the feed-forward block takes, ids [T, A] int32 and scores [T, A]
    float32 the router's choice; both None in a layer without a router.
    """

    x: torch.Tensor
    normed: torch.Tensor
    ids: torch.Tensor | None
    scores: torch.Tensor | None


class AfterAttention(Protocol):
    """Output projection and feed-forward of layer `layer`: x [T, H], attended [T, Q, D] -> x [T, H].

    It is `experts` of `route`, which may be done one after the other, so that in between weights are brought of only
    those experts that `route` has chosen.
    """

    def __call__(
        self, ops: Ops, layer: int, weights: Weights, x: torch.Tensor, attended: torch.Tensor
    ) -> torch.Tensor: ...

    def route(self, ops: Ops, layer: int, weights: Weights, x: torch.Tensor, attended: torch.Tensor) -> Routed: ...

    def experts(self, ops: Ops, layer: int, weights: Weights, routed: Routed) -> torch.Tensor: ...


class Embed(Protocol):
    """Token ids [T] int32 -> x [T, H]."""

    def __call__(self, ops: Ops, weights: Weights, token_ids: torch.Tensor) -> torch.Tensor: ...


class Logits(Protocol):
    """Final norm and head: x [R, H] -> logits [R, V] float32."""

    def __call__(self, ops: Ops, weights: Weights, x: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Architecture:
    """A model, ready to be loaded and run: its config, its tensors and its four functions.

    `resident_tensors` are used once per step (embedding, final norm, head); `layer_tensors[l]` are layer l's, in the
    order in which the layer uses them. `ignored` lists prefixes of checkpoint tensors that are not used on purpose.
    """

    config: ModelConfig
    resident_tensors: tuple[TensorSpec, ...]
    layer_tensors: tuple[tuple[TensorSpec, ...], ...]
    embed: Embed
    before_attention: BeforeAttention
    after_attention: AfterAttention
    logits: Logits
    ignored: tuple[str, ...] = ()
