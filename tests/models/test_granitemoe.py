"""GraniteMoE against transformers."""

from pathlib import Path

import pytest
import torch
from plain_model import check_against_transformers, hub_style, raw_config
from transformers import GraniteMoeConfig

from moelens.models.registry import build

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 6.0,
}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"attention_bias": True},
        {"tie_word_embeddings": True},
        {"num_experts_per_tok": 1},
        {"embedding_multiplier": 1.0, "attention_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0},
    ],
    ids=lambda variant: ",".join(variant) or "plain",
)
def test_logits_equal_transformers(tmp_path: Path, variant: dict[str, object]) -> None:
    architecture = check_against_transformers(GraniteMoeConfig(**{**TINY, **variant}), tmp_path)
    assert build(hub_style(raw_config(tmp_path)), torch.float32) == architecture


def test_attention_multiplier_is_the_scale(tmp_path: Path) -> None:
    GraniteMoeConfig(**TINY).save_pretrained(tmp_path)
    assert build(raw_config(tmp_path), torch.float32).config.layers[0].attention.scale == 0.2
