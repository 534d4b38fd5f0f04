"""DBRX against transformers."""

from pathlib import Path

import pytest
import torch
from plain_model import PlainModel, check_against_transformers, raw_config, read_tensors
from transformers import DbrxConfig

from moelens.errors import ConfigError, UnsupportedModelError
from moelens.models.registry import build

# transformers 5 reads the rotary base outside of attn_config and wants it inside too.
THETA = 500.0
ATTENTION = {"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": THETA}
FFN = {"ffn_hidden_size": 12, "moe_num_experts": 5, "moe_top_k": 2}


def config(attention: dict[str, object] | None = None, ffn: dict[str, object] | None = None) -> DbrxConfig:
    return DbrxConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        vocab_size=96,
        max_seq_len=64,
        rope_theta=THETA,
        attn_config={**ATTENTION, **(attention or {})},
        ffn_config={**FFN, **(ffn or {})},
    )


def saved(folder: Path) -> dict[str, object]:
    config().save_pretrained(folder)
    return raw_config(folder)


@pytest.mark.parametrize(
    ("attention", "ffn"),
    [
        ({}, {}),
        ({"kv_n_heads": 4}, {}),
        ({}, {"moe_normalize_expert_weights": None}),
        ({}, {"moe_normalize_expert_weights": 2.0, "moe_top_k": 3}),
        ({}, {"ffn_act_fn": {"name": "gelu"}}),
    ],
)
def test_logits_equal_transformers(tmp_path: Path, attention: dict[str, object], ffn: dict[str, object]) -> None:
    check_against_transformers(config(attention, ffn), tmp_path)


def test_without_clip_nothing_is_clipped(tmp_path: Path) -> None:
    """transformers can't run this, so the reference is a limit that nothing reaches."""
    check_against_transformers(config({"clip_qkv": 1e6}), tmp_path)
    raw, tensors, ids = raw_config(tmp_path), read_tensors(tmp_path), list(range(9))
    unclipped = {**raw, "attn_config": {**ATTENTION, "clip_qkv": None}}
    expected = PlainModel(build(raw), tensors).logits(ids)
    assert torch.equal(PlainModel(build(unclipped, torch.float32), tensors).logits(ids), expected)


def test_hub_style_config_builds_the_same(tmp_path: Path) -> None:
    new = saved(tmp_path)
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "dtype", "num_key_value_heads")}
    assert build(old, torch.float32) == build(new, torch.float32)


def test_two_rotary_bases_are_refused(tmp_path: Path) -> None:
    raw = saved(tmp_path)
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    with pytest.raises(ConfigError, match=r"rope_theta.*500.*10000"):
        build(raw, torch.float32)


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("ffn_config", {"ffn_act_fn": {"name": "relu"}}, "relu"),
        ("ffn_config", {"ffn_act_fn": {"name": "gelu", "approximate": "tanh"}}, "approximate"),
        ("ffn_config", {"uniform_expert_assignment": True}, "uniform_expert_assignment"),
        ("attn_config", {"sliding_window": 4}, "sliding_window"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, section: str, change: dict[str, object], named: str) -> None:
    raw = saved(tmp_path)
    raw[section] = {**raw[section], **change}  # type: ignore[dict-item]
    with pytest.raises(UnsupportedModelError, match=named):
        build(raw, torch.float32)


def test_tied_embeddings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="tie_word_embeddings"):
        build({**saved(tmp_path), "tie_word_embeddings": True}, torch.float32)
