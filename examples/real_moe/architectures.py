"""Writes the upcycled model in the names, shapes and config.json of each architecture, as the hub holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from real_moe.dense import Array, Dense, DenseLayer
from real_moe.files import ShardWriter
from real_moe.recipe import Recipe
from real_moe.upcycle import Calibration, make_experts, read_calibration, small_bias

TORCH_DTYPES = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
SHARED_WIDTH = 1280  # of the dense neurons, these form Qwen2-MoE's shared expert and the rest each routed one
Config = dict[str, Any]


def write_model(dense: Dense, recipe: Recipe, writer: ShardWriter) -> Config:
    """Write all tensors of the recipe's model; returns its config.json."""
    return _WRITERS[recipe.architecture](dense, recipe, writer)


def _write_mixtral(dense: Dense, recipe: Recipe, writer: ShardWriter) -> Config:
    rows = read_calibration().router_rows[:, : recipe.experts]
    _write_embedding(dense, writer)
    for i in range(dense.layers):
        layer = dense.layer(i)
        _write_attention(layer, i, writer)
        prefix = f"model.layers.{i}.block_sparse_moe."
        writer.add(prefix + "gate.weight", rows[i] * np.float32(recipe.router_scale))
        for e, (gate, up, down) in enumerate(make_experts(layer, recipe, i)):
            writer.add(f"{prefix}experts.{e}.w1.weight", gate)
            writer.add(f"{prefix}experts.{e}.w3.weight", up)
            writer.add(f"{prefix}experts.{e}.w2.weight", down)
    _write_final_norm(dense, writer)
    return _config(
        dense,
        recipe,
        "MixtralForCausalLM",
        intermediate_size=dense.width,
        num_local_experts=recipe.experts,
        num_experts_per_tok=recipe.active,
        sliding_window=None,
        output_router_logits=False,
        router_aux_loss_coef=0.02,
    )


def _write_qwen2_moe(dense: Dense, recipe: Recipe, writer: ShardWriter) -> Config:
    """A shared expert, whose gate is about one half and whose down projection is doubled for it; q, k and v biases."""
    rows = read_calibration().router_rows
    _write_embedding(dense, writer)
    for i in range(dense.layers):
        layer = dense.layer(i)
        prefix = f"model.layers.{i}."
        _write_attention(layer, i, writer)
        for name, half_width in (("q", 0.05), ("k", 0.05), ("v", 0.02)):
            bias = small_bias(recipe, i, name, getattr(layer, name).shape[0], half_width)
            writer.add(f"{prefix}self_attn.{name}_proj.bias", bias)
        writer.add(prefix + "mlp.gate.weight", rows[i, : recipe.experts] * np.float32(recipe.router_scale))
        writer.add(prefix + "mlp.shared_expert_gate.weight", rows[i, -1:] * np.float32(0.1))
        writer.add(prefix + "mlp.shared_expert.gate_proj.weight", layer.gate[:SHARED_WIDTH])
        writer.add(prefix + "mlp.shared_expert.up_proj.weight", layer.up[:SHARED_WIDTH])
        writer.add(prefix + "mlp.shared_expert.down_proj.weight", layer.down[:, :SHARED_WIDTH] * 2)
        _write_experts(layer, i, recipe, writer, first=SHARED_WIDTH)
    _write_final_norm(dense, writer)
    return _config(
        dense,
        recipe,
        "Qwen2MoeForCausalLM",
        intermediate_size=dense.width,
        moe_intermediate_size=dense.width - SHARED_WIDTH,
        shared_expert_intermediate_size=SHARED_WIDTH,
        num_experts=recipe.experts,
        num_experts_per_tok=recipe.active,
        norm_topk_prob=True,
        qkv_bias=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=dense.layers,
        output_router_logits=False,
    )


def _write_olmoe(dense: Dense, recipe: Recipe, writer: ShardWriter) -> Config:
    _write_normed_attention_model(dense, recipe, writer, norms_of=(dense.query_heads, dense.kv_heads))
    return _config(
        dense,
        recipe,
        "OlmoeForCausalLM",
        intermediate_size=dense.width,
        num_experts=recipe.experts,
        num_experts_per_tok=recipe.active,
        norm_topk_prob=True,
        attention_bias=False,
        clip_qkv=None,
        output_router_logits=False,
        router_aux_loss_coef=0.01,
    )


def _write_qwen3_moe(dense: Dense, recipe: Recipe, writer: ShardWriter) -> Config:
    _write_normed_attention_model(dense, recipe, writer, norms_of=(1, 1))
    return _config(
        dense,
        recipe,
        "Qwen3MoeForCausalLM",
        intermediate_size=dense.width,
        moe_intermediate_size=dense.width,
        head_dim=dense.head_dim,
        num_experts=recipe.experts,
        num_experts_per_tok=recipe.active,
        norm_topk_prob=True,
        attention_bias=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=dense.layers,
        output_router_logits=False,
    )


def _write_granitemoe(dense: Dense, recipe: Recipe, writer: ShardWriter) -> Config:
    """Experts fused on disk; Granite's multipliers are set away from 1 and made up for in the weights."""
    rows = read_calibration().router_rows[:, : recipe.experts]
    embedding, residual, logits = 4.0, 0.5, 2.0
    writer.add("model.embed_tokens.weight", dense.embedding / np.float32(embedding))
    for i in range(dense.layers):
        layer = dense.layer(i)
        _write_attention(replace(layer, o=layer.o / np.float32(residual)), i, writer)
        prefix = f"model.layers.{i}.block_sparse_moe."
        writer.add(prefix + "router.layer.weight", rows[i] * np.float32(recipe.router_scale))
        experts = list(make_experts(layer, recipe, i))
        writer.add(prefix + "input_linear.weight", np.stack([np.concatenate([gate, up]) for gate, up, _ in experts]))
        downs = np.stack([down for *_, down in experts])
        writer.add(prefix + "output_linear.weight", downs / np.float32(residual))
    writer.add("model.norm.weight", dense.final_norm * np.float32(embedding * logits))  # the head is the embedding
    return _config(
        dense,
        recipe,
        "GraniteMoeForCausalLM",
        intermediate_size=dense.width,
        num_local_experts=recipe.experts,
        num_experts_per_tok=recipe.active,
        embedding_multiplier=embedding,
        residual_multiplier=residual,
        logits_scaling=logits,
        attention_multiplier=dense.head_dim**-0.5,
        attention_bias=False,
        rope_scaling=None,
        output_router_logits=False,
        router_aux_loss_coef=0.0,
    )


_WRITERS: dict[str, Callable[[Dense, Recipe, ShardWriter], Config]] = {
    "mixtral": _write_mixtral,
    "qwen2_moe": _write_qwen2_moe,
    "qwen3_moe": _write_qwen3_moe,
    "olmoe": _write_olmoe,
    "granitemoe": _write_granitemoe,
}


# --- pieces that several architectures share --------------------------------------------------------------------------
def _config(dense: Dense, recipe: Recipe, architecture: str, **own: object) -> Config:
    return {
        "architectures": [architecture],
        "model_type": recipe.architecture,
        "hidden_size": dense.hidden,
        "num_hidden_layers": dense.layers,
        "num_attention_heads": dense.query_heads,
        "num_key_value_heads": dense.kv_heads,
        "vocab_size": dense.vocab,
        "max_position_embeddings": dense.max_context,
        "rms_norm_eps": dense.eps,
        "rope_theta": dense.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": TORCH_DTYPES[recipe.dtype],
        **own,
    }


def _write_embedding(dense: Dense, writer: ShardWriter) -> None:
    writer.add("model.embed_tokens.weight", dense.embedding)


def _write_final_norm(dense: Dense, writer: ShardWriter) -> None:
    writer.add("model.norm.weight", dense.final_norm)


def _write_attention(layer: DenseLayer, i: int, writer: ShardWriter) -> None:
    prefix = f"model.layers.{i}."
    for name in ("q", "k", "v", "o"):
        writer.add(f"{prefix}self_attn.{name}_proj.weight", getattr(layer, name))
    writer.add(prefix + "input_layernorm.weight", layer.input_norm)
    writer.add(prefix + "post_attention_layernorm.weight", layer.post_attention_norm)


def _write_experts(layer: DenseLayer, i: int, recipe: Recipe, writer: ShardWriter, first: int = 0) -> None:
    for e, matrices in enumerate(make_experts(layer, recipe, i, first)):
        for name, matrix in zip(("gate", "up", "down"), matrices, strict=True):
            writer.add(f"model.layers.{i}.mlp.experts.{e}.{name}_proj.weight", matrix)


def _write_normed_attention_model(dense: Dense, recipe: Recipe, writer: ShardWriter, norms_of: tuple[int, int]) -> None:
    """The tensors of OLMoE and Qwen3-MoE, which norm queries and keys; a norm spans `norms_of` (query, KV) heads."""
    calibration = read_calibration()
    rows = calibration.router_rows[:, : recipe.experts]
    _write_embedding(dense, writer)
    for i in range(dense.layers):
        layer = dense.layer(i)
        _write_attention(_write_qk_norms(dense, layer, i, calibration, writer, norms_of), i, writer)
        writer.add(f"model.layers.{i}.mlp.gate.weight", rows[i] * np.float32(recipe.router_scale))
        _write_experts(layer, i, recipe, writer)
    _write_final_norm(dense, writer)


def _write_qk_norms(
    dense: Dense, layer: DenseLayer, i: int, calibration: Calibration, writer: ShardWriter, norms_of: tuple[int, int]
) -> DenseLayer:
    """Write the norms of q and k; returns the layer with q and k scaled for them.

    The projections are scaled down until their mean square is about eps/2 and the norm's weight up in return, so that
    the norm works half in its linear regime, where eps dominates. Behind a norm to unit size the dense model's
    attention would not survive: each head would lose its own temperature.
    """
    query_heads, kv_heads = norms_of
    q = _write_norm(dense, layer.q, float(calibration.q_mean_square[i]), query_heads, f"{i}.self_attn.q_norm", writer)
    k = _write_norm(dense, layer.k, float(calibration.k_mean_square[i]), kv_heads, f"{i}.self_attn.k_norm", writer)
    return replace(layer, q=q, k=k)


def _write_norm(dense: Dense, weight: Array, mean_square: float, heads: int, name: str, writer: ShardWriter) -> Array:
    factor = np.float32(float(f"{(0.5 * dense.eps / mean_square) ** 0.5:.3g}"))
    norm = np.float32(float(f"{(1.5 * dense.eps) ** 0.5 / float(factor):.3g}"))
    writer.add(f"model.layers.{name}.weight", np.full(heads * dense.head_dim, norm, np.float32))
    return weight * factor
