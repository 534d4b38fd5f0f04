"""Qwen3-MoE: q and k normalised per head before the rotary embedding, some layers dense."""

from __future__ import annotations

import torch

from moelens.models.architecture import Architecture, TensorSpec
from moelens.models.blocks import Dense, FinishLayer, Head, RMSNorm, RoutedExperts, look_up, project_qkv
from moelens.models.config import DenseFFN, LayerConfig, MoEFFN
from moelens.models.qwen import is_dense, qwen_moe_tensors, read_normalisation
from moelens.models.raw_config import RawConfig
from moelens.models.read import read_gqa, read_model, read_moe
from moelens.models.tensors import attention_biases, dense_ffn, ignored, projections, resident, vector
from moelens.ops.interface import Routing


def build(raw: RawConfig, dtype: torch.dtype | None) -> Architecture:
    """A `Qwen3MoeForCausalLM`."""
    count, window = raw.size("num_hidden_layers"), raw.value("sliding_window")
    if raw.flag("use_sliding_window", False) and window is not None:
        attention = read_gqa(raw, window=raw.size("sliding_window"))
    else:
        attention = read_gqa(raw)
    if not raw.flag("use_qk_norm", True):  # some of the hub's configs name what is always there
        raise raw.unsupported("use_qk_norm", False, "this family normalises q and k")
    moe = read_moe(raw, width="moe_intermediate_size")
    dense = [is_dense(raw, layer) for layer in range(count)]
    ffns = [DenseFFN(raw.size("intermediate_size")) if one else moe for one in dense]
    config = read_model(raw, "qwen3_moe", [LayerConfig(attention, ffn) for ffn in ffns], dtype)
    norm, activation = RMSNorm(raw.positive("rms_norm_eps", 1e-6)), raw.activation("hidden_act")
    sparse = RoutedExperts(Routing(moe.active, norm=read_normalisation(raw)), activation)
    bias = raw.flag("attention_bias", False)

    def tensors(layer: int) -> tuple[TensorSpec, ...]:
        prefix, ffn = f"model.layers.{layer}.", ffns[layer]
        return (
            vector("attention_norm", f"{prefix}input_layernorm.weight", config.hidden),
            *projections(f"{prefix}self_attn.", config.hidden, attention),
            *(attention_biases(f"{prefix}self_attn.", config.hidden, attention) if bias else ()),
            vector("q_norm", f"{prefix}self_attn.q_norm.weight", attention.head_dim),
            vector("k_norm", f"{prefix}self_attn.k_norm.weight", attention.head_dim),
            vector("ffn_norm", f"{prefix}post_attention_layernorm.weight", config.hidden),
            *(
                qwen_moe_tensors(f"{prefix}mlp.", ffn, config.hidden)
                if isinstance(ffn, MoEFFN)
                else dense_ffn("dense", f"{prefix}mlp.", ffn.width, config.hidden)
            ),
        )

    return Architecture(
        config=config,
        resident_tensors=resident(config),
        layer_tensors=tuple(tensors(layer) for layer in range(count)),
        embed=look_up,
        before_attention=project_qkv([attention] * count, norm, qk_norm_eps=norm.eps),
        after_attention=FinishLayer(norm, tuple(Dense(activation) if one else sparse for one in dense)),
        logits=Head(norm),
        ignored=ignored(config),
    )
