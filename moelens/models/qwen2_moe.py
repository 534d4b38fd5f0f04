"""Qwen2-MoE: small experts beside a shared one behind a sigmoid gate, q/k/v biases, some layers dense."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from moelens.models.architecture import Architecture, Routed, TensorSpec, Weights
from moelens.models.blocks import (
    Dense,
    FinishLayer,
    Head,
    RMSNorm,
    RoutedExperts,
    first_expert,
    look_up,
    project_qkv,
)
from moelens.models.config import DenseFFN, LayerConfig, MoEFFN
from moelens.models.qwen import is_dense, qwen_moe_tensors, read_normalisation
from moelens.models.raw_config import RawConfig
from moelens.models.read import read_gqa, read_model, read_moe
from moelens.models.tensors import dense_ffn, ignored, matrix, projections, qkv_bias, resident, vector
from moelens.ops.interface import Ops, Routing


@dataclass(frozen=True)
class SharedAndRouted:
    """A shared expert, weighed by a sigmoid gate, and routed ones."""

    routed: RoutedExperts

    @property
    def routing(self) -> Routing:
        return self.routed.routing

    def __call__(self, ops: Ops, weights: Weights, routed: Routed) -> torch.Tensor:
        normed, shared = routed.normed, weights.experts["shared"]
        gate = ops.sigmoid_scores(normed, weights.matrix["shared_gate"])
        x = ops.experts(normed, shared, first_expert(normed), gate, self.routed.activation, residual=routed.x)
        return self.routed(ops, weights, replace(routed, x=x))


def build(raw: RawConfig, dtype: torch.dtype | None) -> Architecture:
    """A `Qwen2MoeForCausalLM`."""
    count = raw.size("num_hidden_layers")
    attention = [read_gqa(raw, window=window) for window in _read_windows(raw, count)]
    moe = read_moe(raw, width="moe_intermediate_size", shared_width=raw.size("shared_expert_intermediate_size"))
    dense = [is_dense(raw, layer) for layer in range(count)]
    ffns = [DenseFFN(raw.size("intermediate_size")) if one else moe for one in dense]
    layers = [LayerConfig(*pair) for pair in zip(attention, ffns, strict=True)]
    config = read_model(raw, "qwen2_moe", layers, dtype)
    norm, activation = RMSNorm(raw.positive("rms_norm_eps", 1e-6)), raw.activation("hidden_act")
    sparse = SharedAndRouted(RoutedExperts(Routing(moe.active, norm=read_normalisation(raw)), activation))
    bias = raw.flag("qkv_bias", True)

    def tensors(layer: int) -> tuple[TensorSpec, ...]:
        prefix, ffn = f"model.layers.{layer}.", ffns[layer]
        qkv, output = projections(f"{prefix}self_attn.", config.hidden, attention[layer])
        return (
            vector("attention_norm", f"{prefix}input_layernorm.weight", config.hidden),
            qkv,
            *([qkv_bias(f"{prefix}self_attn.", attention[layer])] if bias else []),
            output,
            vector("ffn_norm", f"{prefix}post_attention_layernorm.weight", config.hidden),
            *(
                _shared_and_routed(f"{prefix}mlp.", ffn, config.hidden)
                if isinstance(ffn, MoEFFN)
                else dense_ffn("dense", f"{prefix}mlp.", ffn.width, config.hidden)
            ),
        )

    return Architecture(
        config=config,
        resident_tensors=resident(config),
        layer_tensors=tuple(tensors(layer) for layer in range(count)),
        embed=look_up,
        before_attention=project_qkv(attention, norm),
        after_attention=FinishLayer(norm, tuple(Dense(activation) if one else sparse for one in dense)),
        logits=Head(norm),
        ignored=ignored(config),
    )


def _shared_and_routed(prefix: str, ffn: MoEFFN, hidden: int) -> tuple[TensorSpec, ...]:
    return (
        matrix("shared_gate", hidden, (f"{prefix}shared_expert_gate.weight", 1)),
        *dense_ffn("shared", f"{prefix}shared_expert.", ffn.shared_width, hidden),
        *qwen_moe_tensors(prefix, ffn, hidden),
    )


def _read_windows(raw: RawConfig, count: int) -> list[int | None]:
    """Each layer's window: as `layer_types` says, or else every other one of the first `max_window_layers`."""
    use, window = raw.flag("use_sliding_window", False), raw.value("sliding_window")
    kinds, limit = raw.texts("layer_types"), raw.optional_size("max_window_layers")
    if not use:
        slides = [kind != "full_attention" for kind in kinds]
        if any(slides):
            raise raw.wrong("layer_types", 'only "full_attention", as "use_sliding_window" is false', list(kinds))
        return [None] * count
    if window is None:
        raise raw.wrong("sliding_window", 'a positive integer, as "use_sliding_window" is true', window)
    if not kinds:
        limit = raw.size("max_window_layers")
        kinds = tuple("sliding_attention" if i % 2 == 0 and i < limit else "full_attention" for i in range(count))
    if len(kinds) != count or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise raw.wrong("layer_types", f'{count} of "sliding_attention" and "full_attention"', list(kinds))
    return [raw.size("sliding_window") if kind == "sliding_attention" else None for kind in kinds]
