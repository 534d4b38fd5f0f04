"""Reads the records of a `ModelConfig` under the keys that most families share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moelens.errors import ConfigError
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN
from moelens.models.raw_config import RawConfig
from moelens.models.rope import read_rope


def read_gqa(
    raw: RawConfig, *, default_theta: float = 10_000.0, window: int | None = None, scale: float | None = None
) -> GQA:
    """Grouped-query attention; `scale` None is 1/√head_dim."""
    query_heads = raw.size("num_attention_heads")
    head_dim = raw.optional_size("head_dim") or raw.size("hidden_size") // query_heads
    return GQA(
        query_heads=query_heads,
        kv_heads=raw.size("num_key_value_heads", default=query_heads),
        head_dim=head_dim,
        scale=head_dim**-0.5 if scale is None else scale,
        rope=read_rope(raw, head_dim, default_theta=default_theta, max_context=raw.size("max_position_embeddings")),
        window=window,
    )


def read_moe(raw: RawConfig, *, width: str, shared_width: int = 0) -> MoEFFN:
    """Routed experts; `width` names the key of their width. transformers 5 writes the hub's `num_experts` as
    `num_local_experts` for some families."""
    return MoEFFN(
        experts=raw.size("num_experts", "num_local_experts"),
        active=raw.size("num_experts_per_tok"),
        width=raw.size(width),
        shared_width=shared_width,
    )


def read_model(raw: RawConfig, name: str, layers: Sequence[LayerConfig], dtype: torch.dtype | None) -> ModelConfig:
    """The whole model."""
    return ModelConfig(
        name=name,
        hidden=raw.size("hidden_size"),
        vocab=raw.size("vocab_size"),
        layers=tuple(layers),
        dtype=raw.dtype(dtype),
        max_context=raw.size("max_position_embeddings"),
        tied_embeddings=raw.flag("tie_word_embeddings", False),
        eos_token_ids=raw.integers("eos_token_id"),
    )


def check_model(config: ModelConfig) -> None:
    """That the numbers fit together; raises ConfigError."""
    for layer in config.layers:
        attention, ffn = layer.attention, layer.ffn
        if attention.query_heads % attention.kv_heads:
            raise ConfigError(
                f"config.json: {attention.query_heads} query heads can't share {attention.kv_heads} key/value heads "
                "evenly: restore the config.json that the checkpoint was published with."
            )
        if isinstance(ffn, MoEFFN) and ffn.active > ffn.experts:
            raise ConfigError(
                f"config.json: {ffn.active} active experts per token, but there are only {ffn.experts}: restore the "
                "config.json that the checkpoint was published with."
            )
