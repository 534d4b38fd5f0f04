"""GraniteMoE: the softmax over the chosen experts only, four multipliers, all experts of a layer in one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moelens.models.architecture import Architecture, Piece, TensorSpec, Weights
from moelens.models.blocks import FinishLayer, Head, RMSNorm, RoutedExperts, look_up, project_qkv
from moelens.models.config import LayerConfig, MoEFFN
from moelens.models.raw_config import RawConfig
from moelens.models.read import read_gqa, read_model, read_moe
from moelens.models.tensors import attention_biases, ignored, joined_experts, matrix, projections, resident, vector
from moelens.ops.interface import Ops, Routing, Scoring


@dataclass(frozen=True)
class ScaledEmbedding:
    """The embedding times `factor`."""

    factor: float

    def __call__(self, ops: Ops, weights: Weights, token_ids: torch.Tensor) -> torch.Tensor:
        return ops.scale(look_up(ops, weights, token_ids), self.factor)


def build(raw: RawConfig, dtype: torch.dtype | None) -> Architecture:
    """A `GraniteMoeForCausalLM`."""
    attention = read_gqa(raw, scale=raw.number("attention_multiplier", 1.0))
    ffn = read_moe(raw, width="intermediate_size")
    count = raw.size("num_hidden_layers")
    config = read_model(raw, "granitemoe", [LayerConfig(attention, ffn)] * count, dtype)
    norm = RMSNorm(raw.positive("rms_norm_eps", 1e-6))
    residual_scale = raw.number("residual_multiplier", 1.0)
    routing = Routing(ffn.active, Scoring.TOPK_SOFTMAX)
    experts = RoutedExperts(routing, raw.activation("hidden_act"), residual_scale)
    bias = raw.flag("attention_bias", False)

    def tensors(layer: int) -> tuple[TensorSpec, ...]:
        prefix = f"model.layers.{layer}."
        return (
            vector("attention_norm", f"{prefix}input_layernorm.weight", config.hidden),
            *projections(f"{prefix}self_attn.", config.hidden, attention),
            *(attention_biases(f"{prefix}self_attn.", config.hidden, attention) if bias else ()),
            vector("ffn_norm", f"{prefix}post_attention_layernorm.weight", config.hidden),
            matrix("router", config.hidden, (f"{prefix}block_sparse_moe.router.layer.weight", ffn.experts)),
            *_fused_experts(f"{prefix}block_sparse_moe.", ffn, config.hidden),
        )

    return Architecture(
        config=config,
        resident_tensors=resident(config),
        layer_tensors=tuple(tensors(layer) for layer in range(count)),
        embed=ScaledEmbedding(raw.number("embedding_multiplier", 1.0)),
        before_attention=project_qkv([attention] * count, norm),
        after_attention=FinishLayer(norm, (experts,) * count, residual_scale),
        logits=Head(norm, 1.0 / raw.positive("logits_scaling", 1.0)),
        ignored=ignored(config),
    )


def _fused_experts(prefix: str, ffn: MoEFFN, hidden: int) -> tuple[TensorSpec, TensorSpec]:
    """[E, 2I, H] with an expert's gate above its up, and [E, H, I]."""
    name, shape = f"{prefix}input_linear.weight", (ffn.experts, 2 * ffn.width, hidden)
    gate_up = (Piece(name, shape, (half * ffn.width, (half + 1) * ffn.width)) for half in range(2 * ffn.experts))
    name_out, shape_out = f"{prefix}output_linear.weight", (ffn.experts, hidden, ffn.width)
    down = (Piece(name_out, shape_out, (expert * hidden, (expert + 1) * hidden)) for expert in range(ffn.experts))
    return joined_experts("experts", ffn.experts, ffn.width, hidden, gate_up=tuple(gate_up), down=tuple(down))
