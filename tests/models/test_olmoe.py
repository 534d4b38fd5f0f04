"""OLMoE against transformers."""

from pathlib import Path

import pytest
import torch
from plain_model import check_against_transformers, hub_style, raw_config
from transformers import OlmoeConfig

from moelens.models.registry import build

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "eos_token_id": 7,
}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"norm_topk_prob": True},
        {"clip_qkv": 0.5},
        {"attention_bias": True},
        {"num_key_value_heads": 2},
        {"tie_word_embeddings": True},
    ],
    ids=lambda variant: ",".join(variant) or "plain",
)
def test_logits_equal_transformers(tmp_path: Path, variant: dict[str, object]) -> None:
    architecture = check_against_transformers(OlmoeConfig(**{**TINY, **variant}), tmp_path)
    assert build(hub_style(raw_config(tmp_path)), torch.float32) == architecture


def test_key_value_heads_are_the_query_heads_when_absent(tmp_path: Path) -> None:
    OlmoeConfig(**TINY).save_pretrained(tmp_path)
    raw = raw_config(tmp_path)
    del raw["num_key_value_heads"]
    assert build(raw, torch.float32).config.layers[0].attention.kv_heads == 4
