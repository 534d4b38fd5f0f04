"""Qwen3-MoE against transformers."""

from pathlib import Path

import pytest
import torch
from plain_model import check_against_transformers, hub_style, raw_config
from transformers import Qwen3MoeConfig

from moelens.errors import UnsupportedModelError
from moelens.models.registry import build

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"norm_topk_prob": False},
        {"attention_bias": True},
        {"mlp_only_layers": [0]},
        {"decoder_sparse_step": 3},
        {"use_sliding_window": True, "sliding_window": 5},
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    ],
    ids=lambda variant: ",".join(variant) or "plain",
)
def test_logits_equal_transformers(tmp_path: Path, variant: dict[str, object]) -> None:
    architecture = check_against_transformers(Qwen3MoeConfig(**{**TINY, **variant}), tmp_path)
    old = hub_style(raw_config(tmp_path))
    if "num_local_experts" in old:
        old["num_experts"] = old.pop("num_local_experts")
    assert build(old, torch.float32) == architecture


def test_hub_configs_may_name_what_every_model_of_the_family_has(tmp_path: Path) -> None:
    Qwen3MoeConfig(**TINY).save_pretrained(tmp_path)
    raw = {**raw_config(tmp_path), "qkv_bias": False, "shared_expert_intermediate_size": 0}
    assert build({**raw, "use_qk_norm": True}, torch.float32) == build(raw, torch.float32)
    for change in ({"use_qk_norm": False}, {"qkv_bias": True}, {"shared_expert_intermediate_size": 8}):
        with pytest.raises(UnsupportedModelError, match=next(iter(change))):
            build({**raw, **change}, torch.float32)


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    Qwen3MoeConfig(**TINY).save_pretrained(tmp_path)
    raw = {**raw_config(tmp_path), "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2}
    assert all(layer.attention.window is None for layer in build(raw, torch.float32).config.layers)
