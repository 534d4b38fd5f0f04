"""Greedy tokens and logits against transformers: random models of every family, and real text where time allows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DbrxConfig,
    GraniteMoeConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from bench.token_agreement import Agreement, compare, generate, judge, read_prompts, reference
from real_moe import ARCHITECTURES, default_recipe, ensure_checkpoint

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**SIZES, sliding_window=20),
    "qwen2_moe": Qwen2MoeConfig(
        **SIZES,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        num_experts=8,
        num_experts_per_tok=3,
        mlp_only_layers=[1],
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, head_dim=32, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True
    ),
    "olmoe": OlmoeConfig(**SIZES, num_experts=8, num_experts_per_tok=3, clip_qkv=3.0),
    "granitemoe": GraniteMoeConfig(
        **SIZES,
        embedding_multiplier=2.0,
        attention_multiplier=0.2,
        residual_multiplier=0.7,
        logits_scaling=3.0,
        tie_word_embeddings=True,
    ),
    "dbrx": DbrxConfig(
        d_model=64,
        n_heads=4,
        n_layers=3,
        vocab_size=300,
        max_seq_len=128,
        rope_theta=500.0,
        attn_config={"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 500.0},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 6, "moe_top_k": 3},
        initializer_range=0.2,
    ),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_random_models_agree(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.bfloat16).save_pretrained(tmp_path)
    agreement = compare(tmp_path, family, read_prompts(12, tmp_path), 32, bfloat16=True)
    assert agreement.tokens == 12 * 32
    check(agreement)


def test_a_text_without_a_difference_is_what_transformers_generates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["mixtral"], dtype=torch.float32).save_pretrained(tmp_path)
    prompts = read_prompts(4, tmp_path)
    model = reference(tmp_path, torch.float32)
    model.generation_config.eos_token_id = None  # go on after it, as ours does
    judged = []
    for prompt, output in zip(prompts, generate(tmp_path, prompts, 32), strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
        judged.append(judge(model, prompt, output))
        assert (whole[0, len(prompt) :].tolist() == output) == (judged[-1] == (0, 0))
    assert (0, 0) in judged


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_real_text_agrees(architecture: str) -> None:
    folder = ensure_checkpoint(default_recipe(architecture))
    agreement = compare(folder, architecture, read_prompts(32, folder), 64, bfloat16=True)
    assert agreement.tokens == 32 * 64
    check(agreement)
    assert agreement.bfloat16 is not None and agreement.bfloat16.all <= 2e-2, agreement


def check(agreement: Agreement) -> None:
    """Tokens may differ at near ties only, and few of them; bfloat16 errs no more than transformers does."""
    assert agreement.wrong == 0, agreement
    assert agreement.near_ties <= agreement.tokens // 200, agreement
    assert agreement.bfloat16 is not None and agreement.transformers_bfloat16 is not None
    assert agreement.bfloat16.all <= 1.5 * agreement.transformers_bfloat16.all, agreement
    assert agreement.bfloat16.median <= 1.5 * agreement.transformers_bfloat16.median, agreement
