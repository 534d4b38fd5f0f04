"""Qwen2-MoE against transformers."""

from pathlib import Path

import pytest
import torch
from plain_model import check_against_transformers, hub_style, raw_config
from transformers import Qwen2MoeConfig

from moelens.errors import ConfigError
from moelens.models.config import DenseFFN, MoEFFN
from moelens.models.registry import build

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"norm_topk_prob": True},
        {"qkv_bias": False},
        {"mlp_only_layers": [1]},
        {"decoder_sparse_step": 2},
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
        {"tie_word_embeddings": True},
        {"head_dim": 12},
    ],
    ids=lambda variant: ",".join(variant) or "plain",
)
def test_logits_equal_transformers(tmp_path: Path, variant: dict[str, object]) -> None:
    architecture = check_against_transformers(Qwen2MoeConfig(**{**TINY, **variant}), tmp_path)
    raw = raw_config(tmp_path)
    assert build(hub_style(raw), torch.float32) == architecture


def test_dense_layers_are_data(tmp_path: Path) -> None:
    Qwen2MoeConfig(**TINY, mlp_only_layers=[0, 2]).save_pretrained(tmp_path)
    ffns = [layer.ffn for layer in build(raw_config(tmp_path), torch.float32).config.layers]
    moe = MoEFFN(experts=6, active=3, width=12, shared_width=20)
    assert ffns == [DenseFFN(40), moe, DenseFFN(40), moe]


def test_layer_types_place_the_window(tmp_path: Path) -> None:
    raw = _raw(tmp_path, use_sliding_window=True, sliding_window=5, max_window_layers=4)
    raw["layer_types"] = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    assert [layer.attention.window for layer in build(raw, torch.float32).config.layers] == [None, 5, None, 5]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_sliding_window": True, "sliding_window": None}, '"sliding_window"'),
        ({"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention"]}, '"layer_types"'),
        ({"use_sliding_window": True, "sliding_window": 5, "layer_types": ["chunked"] * 4}, '"layer_types"'),
        ({"use_sliding_window": False, "layer_types": ["sliding_attention"] * 4}, '"layer_types"'),
    ],
)
def test_windows_that_contradict_themselves_are_refused(tmp_path: Path, change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build({**_raw(tmp_path), **change}, torch.float32)


def _raw(folder: Path, **config: object) -> dict[str, object]:
    Qwen2MoeConfig(**TINY, **config).save_pretrained(folder)
    return raw_config(folder)
