"""OLMoE: q and k normalised over the whole projection before the rotary embedding, then clipped if the config says."""

from __future__ import annotations

import torch

from moelens.models.architecture import Architecture, TensorSpec
from moelens.models.blocks import FinishLayer, Head, RMSNorm, RoutedExperts, look_up, project_qkv
from moelens.models.config import LayerConfig
from moelens.models.qwen import qwen_moe_tensors, read_normalisation
from moelens.models.raw_config import RawConfig
from moelens.models.read import read_gqa, read_model, read_moe
from moelens.models.tensors import attention_biases, ignored, projections, resident, vector
from moelens.ops.interface import Routing


def build(raw: RawConfig, dtype: torch.dtype | None) -> Architecture:
    """An `OlmoeForCausalLM`."""
    attention, ffn = read_gqa(raw), read_moe(raw, width="intermediate_size")
    count = raw.size("num_hidden_layers")
    config = read_model(raw, "olmoe", [LayerConfig(attention, ffn)] * count, dtype)
    norm = RMSNorm(raw.positive("rms_norm_eps", 1e-5))
    limit = None if raw.value("clip_qkv") is None else raw.positive("clip_qkv")
    experts = RoutedExperts(Routing(ffn.active, norm=read_normalisation(raw)), raw.activation("hidden_act"))
    bias = raw.flag("attention_bias", False)

    def tensors(layer: int) -> tuple[TensorSpec, ...]:
        prefix = f"model.layers.{layer}."
        return (
            vector("attention_norm", f"{prefix}input_layernorm.weight", config.hidden),
            *projections(f"{prefix}self_attn.", config.hidden, attention),
            *(attention_biases(f"{prefix}self_attn.", config.hidden, attention) if bias else ()),
            vector("q_norm", f"{prefix}self_attn.q_norm.weight", attention.query_heads * attention.head_dim),
            vector("k_norm", f"{prefix}self_attn.k_norm.weight", attention.kv_heads * attention.head_dim),
            vector("ffn_norm", f"{prefix}post_attention_layernorm.weight", config.hidden),
            *qwen_moe_tensors(f"{prefix}mlp.", ffn, config.hidden),
        )

    return Architecture(
        config=config,
        resident_tensors=resident(config),
        layer_tensors=tuple(tensors(layer) for layer in range(count)),
        embed=look_up,
        before_attention=project_qkv([attention] * count, norm, qk_norm_eps=norm.eps, limit=limit),
        after_attention=FinishLayer(norm, (experts,) * count),
        logits=Head(norm),
        ignored=ignored(config),
    )
