"""Mixtral against transformers."""

from pathlib import Path

import pytest
import torch
from plain_model import check_against_transformers, hub_style, raw_config
from transformers import MixtralConfig

from moelens.models.registry import build

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"sliding_window": 5},
        {"head_dim": 12, "num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu"},
        {"num_experts_per_tok": 5, "rms_norm_eps": 0.1},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    ],
    ids=lambda variant: ",".join(variant) or "plain",
)
def test_logits_equal_transformers(tmp_path: Path, variant: dict[str, object]) -> None:
    architecture = check_against_transformers(MixtralConfig(**{**TINY, **variant}), tmp_path)
    raw = raw_config(tmp_path)
    assert build(hub_style(raw), torch.float32) == architecture == build(raw)


def test_sliding_window_is_in_every_layer(tmp_path: Path) -> None:
    MixtralConfig(**TINY, sliding_window=7).save_pretrained(tmp_path)
    config = build(raw_config(tmp_path), torch.float32).config
    assert [layer.attention.window for layer in config.layers] == [7, 7, 7]
