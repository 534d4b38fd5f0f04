"""What a model is, as data: one `LayerConfig` per layer, read once from a checkpoint's config.json."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch


class Quantization(enum.Enum):
    """How the weights of large products are kept, where it is not in the model's dtype."""

    INT8 = "int8"  # 8-bit whole numbers with a scale for each row, made as the weights are loaded


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding, rotate-half form.

    `inverse_frequencies` has rotary_dim/2 entries (radians per position); `magnitude` multiplies cos and sin (YaRN's
    attention factor, 1 for the plain form). The first `rotary_dim` elements of a head are rotated.
    """

    inverse_frequencies: tuple[float, ...]
    magnitude: float = 1.0

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.inverse_frequencies)


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention: `query_heads` share `kv_heads`; `window` is the number of keys seen, None for all."""

    query_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope
    window: int | None = None


@dataclass(frozen=True)
class DenseFFN:
    """A gated feed-forward block of `width` neurons."""

    width: int


@dataclass(frozen=True)
class MoEFFN:
    """`experts` gated feed-forward blocks of `width` neurons, `active` of them per token, and a shared one beside."""

    experts: int
    active: int
    width: int
    shared_width: int = 0


@dataclass(frozen=True)
class LayerConfig:
    attention: GQA
    ffn: DenseFFN | MoEFFN


@dataclass(frozen=True)
class ModelConfig:
    """Everything that planning, scheduling and memory need to know of a model; `max_context` in tokens."""

    name: str
    hidden: int
    vocab: int
    layers: tuple[LayerConfig, ...]
    dtype: torch.dtype
    max_context: int
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...] = ()
    quantization: Quantization | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V that one token of context takes, over all layers."""
        heads = sum(2 * layer.attention.kv_heads * layer.attention.head_dim for layer in self.layers)
        return heads * self.dtype.itemsize
