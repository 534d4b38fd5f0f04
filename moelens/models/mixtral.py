"""Mixtral: the softmax over all experts, its top ones always renormalised; an optional sliding window."""

from __future__ import annotations

import torch

from moelens.models.architecture import Architecture, TensorSpec
from moelens.models.blocks import FinishLayer, Head, RMSNorm, RoutedExperts, look_up, project_qkv
from moelens.models.config import LayerConfig
from moelens.models.raw_config import RawConfig
from moelens.models.read import read_gqa, read_model, read_moe
from moelens.models.tensors import ignored, matrix, projections, resident, separate_experts, vector
from moelens.ops.interface import Routing


def build(raw: RawConfig, dtype: torch.dtype | None) -> Architecture:
    """A `MixtralForCausalLM`."""
    attention = read_gqa(raw, default_theta=1e6, window=raw.optional_size("sliding_window"))
    ffn = read_moe(raw, width="intermediate_size")
    count = raw.size("num_hidden_layers")
    config = read_model(raw, "mixtral", [LayerConfig(attention, ffn)] * count, dtype)
    norm = RMSNorm(raw.positive("rms_norm_eps", 1e-5))
    experts = RoutedExperts(Routing(ffn.active, norm=1.0), raw.activation("hidden_act"))

    def tensors(layer: int) -> tuple[TensorSpec, ...]:
        prefix = f"model.layers.{layer}."
        moe = f"{prefix}block_sparse_moe."
        expert = f"{moe}experts.{{expert}}."
        return (
            vector("attention_norm", f"{prefix}input_layernorm.weight", config.hidden),
            *projections(f"{prefix}self_attn.", config.hidden, attention),
            vector("ffn_norm", f"{prefix}post_attention_layernorm.weight", config.hidden),
            matrix("router", config.hidden, (f"{moe}gate.weight", ffn.experts)),
            *separate_experts(
                *("experts", ffn.experts, ffn.width, config.hidden),
                gate=f"{expert}w1.weight",
                up=f"{expert}w3.weight",
                down=f"{expert}w2.weight",
            ),
        )

    return Architecture(
        config=config,
        resident_tensors=resident(config),
        layer_tensors=tuple(tensors(layer) for layer in range(count)),
        embed=look_up,
        before_attention=project_qkv([attention] * count, norm),
        after_attention=FinishLayer(norm, (experts,) * count),
        logits=Head(norm),
        ignored=ignored(config),
    )
