"""DBRX: layer norms, q, k and v in one clipped product, weights divided by their p-norm, experts stacked in 2-D."""

from __future__ import annotations

import torch

from moelens.errors import ConfigError
from moelens.models.architecture import Architecture, Piece, TensorSpec
from moelens.models.blocks import FinishLayer, Head, LayerNorm, RoutedExperts, look_up, project_qkv
from moelens.models.config import GQA, LayerConfig, ModelConfig, MoEFFN
from moelens.models.raw_config import RawConfig
from moelens.models.rope import read_rope
from moelens.models.tensors import joined_experts, matrix, resident, vector
from moelens.ops.interface import Activation, Routing

_NORM_EPS = 1e-5  # torch's; the config has no say


def build(raw: RawConfig, dtype: torch.dtype | None) -> Architecture:
    """A `DbrxForCausalLM`."""
    attention_section, ffn_section = raw.section("attn_config"), raw.section("ffn_config")
    attention = _read_attention(raw, attention_section)
    ffn = MoEFFN(
        ffn_section.size("moe_num_experts"), ffn_section.size("moe_top_k"), ffn_section.size("ffn_hidden_size")
    )
    count = raw.size("n_layers")
    config = ModelConfig(
        name="dbrx",
        hidden=raw.size("d_model"),
        vocab=raw.size("vocab_size"),
        layers=(LayerConfig(attention, ffn),) * count,
        dtype=raw.dtype(dtype),
        max_context=raw.size("max_seq_len"),
        tied_embeddings=False,
        eos_token_ids=raw.integers("eos_token_id"),
    )
    limit = None if attention_section.value("clip_qkv") is None else attention_section.positive("clip_qkv")
    experts = RoutedExperts(Routing(ffn.active, norm=_read_normalisation(ffn_section)), _read_activation(ffn_section))
    norm = LayerNorm(_NORM_EPS)
    attention_section.check_all_read()
    ffn_section.check_all_read()
    return Architecture(
        config=config,
        resident_tensors=resident(config, embedding="transformer.wte.weight", norm="transformer.norm_f.weight"),
        layer_tensors=tuple(_tensors(layer, config.hidden, attention, ffn) for layer in range(count)),
        embed=look_up,
        before_attention=project_qkv([attention] * count, norm, limit=limit),
        after_attention=FinishLayer(norm, (experts,) * count),
        logits=Head(norm),
    )


def _read_attention(raw: RawConfig, section: RawConfig) -> GQA:
    """The hub's config has the rotary base in the attention section; transformers 5 writes `rope_parameters` too."""
    heads, theta = raw.size("n_heads"), section.positive("rope_theta", 10_000.0)
    head_dim = raw.size("d_model") // heads
    rope = read_rope(raw, head_dim, default_theta=theta, max_context=raw.size("max_seq_len"))
    if section.value("rope_theta") is not None:
        stated = raw.section("rope_parameters").positive("rope_theta", raw.positive("rope_theta", theta))
        if stated != theta:
            raise ConfigError(
                f'{raw.where}: "rope_theta" is {theta} in "attn_config" and {stated} outside of it: delete the one '
                "that the model was not trained with."
            )
    return GQA(heads, section.size("kv_n_heads"), head_dim, head_dim**-0.5, rope)


def _read_normalisation(section: RawConfig) -> float | None:
    """The p of the norm; absent it is 1, and null means that the weights stay as they are."""
    key = "moe_normalize_expert_weights"
    if section.has(key) and section.value(key) is None:
        return None
    return section.positive(key, 1.0)


def _read_activation(section: RawConfig) -> Activation:
    function = section.section("ffn_act_fn")
    activation = function.activation("name")
    function.check_only_read()
    return activation


def _tensors(layer: int, hidden: int, attention: GQA, ffn: MoEFFN) -> tuple[TensorSpec, ...]:
    prefix = f"transformer.blocks.{layer}."
    block = f"{prefix}norm_attn_norm."
    heads = attention.query_heads + 2 * attention.kv_heads
    return (
        vector("attention_norm", f"{block}norm_1.weight", hidden),
        matrix("qkv", hidden, (f"{block}attn.Wqkv.weight", heads * attention.head_dim)),
        matrix("output", attention.query_heads * attention.head_dim, (f"{block}attn.out_proj.weight", hidden)),
        vector("ffn_norm", f"{block}norm_2.weight", hidden),
        matrix("router", hidden, (f"{prefix}ffn.router.layer.weight", ffn.experts)),
        *_stacked_experts(f"{prefix}ffn.experts.mlp.", ffn, hidden),
    )


def _stacked_experts(prefix: str, ffn: MoEFFN, hidden: int) -> tuple[TensorSpec, TensorSpec]:
    """w1 (gate), v1 (up) and w2 (down, transposed), each [E·I, H]."""
    shape = (ffn.experts * ffn.width, hidden)
    rows = [(expert * ffn.width, (expert + 1) * ffn.width) for expert in range(ffn.experts)]
    gate_up = tuple(Piece(f"{prefix}{name}", shape, own) for own in rows for name in ("w1", "v1"))
    down = tuple(Piece(f"{prefix}w2", shape, own, transposed=True) for own in rows)
    return joined_experts("experts", ffn.experts, ffn.width, hidden, gate_up=gate_up, down=down)
