"""OLMoE: q and k normalised over the whole projection before the rotary embedding, then clipped if the config says."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moelens.models.architecture import Architecture, TensorSpec, Weights
from moelens.models.blocks import (
    QKV,
    Adjust,
    Clamp,
    FinishLayer,
    Head,
    RMSNorm,
    RoutedExperts,
    leave,
    look_up,
    project_qkv,
)
from moelens.models.config import LayerConfig
from moelens.models.qwen import qwen_moe_tensors, read_normalisation
from moelens.models.raw_config import RawConfig
from moelens.models.read import read_gqa, read_model, read_moe
from moelens.models.tensors import attention_biases, ignored, projections, resident, vector
from moelens.ops.interface import Ops, Routing


@dataclass(frozen=True)
class NormProjections:
    """RMS norm of q and k, each as one vector over all heads, in float32 as they are; `then` is done to the result."""

    norm: RMSNorm
    then: Adjust

    def __call__(self, ops: Ops, weights: Weights, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> QKV:
        normed_q = self.norm(ops, q, weights.plain["q_norm"].float())
        normed_k = self.norm(ops, k, weights.plain["k_norm"].float())
        return self.then(ops, weights, normed_q, normed_k, v)


def build(raw: RawConfig, dtype: torch.dtype | None) -> Architecture:
    """An `OlmoeForCausalLM`."""
    attention, ffn = read_gqa(raw), read_moe(raw, width="intermediate_size")
    count = raw.size("num_hidden_layers")
    config = read_model(raw, "olmoe", [LayerConfig(attention, ffn)] * count, dtype)
    norm = RMSNorm(raw.positive("rms_norm_eps", 1e-5))
    clip = leave if raw.value("clip_qkv") is None else Clamp(raw.positive("clip_qkv"))
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
        before_attention=project_qkv([attention] * count, norm, NormProjections(norm, clip), torch.float32),
        after_attention=FinishLayer(norm, (experts,) * count),
        logits=Head(norm),
        ignored=ignored(config),
    )
