"""Which configs are built, which are refused and why."""

from typing import Any

import pytest
import torch

from moelens.errors import ConfigError, UnsupportedModelError
from moelens.models.registry import build

MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "torch_dtype": "bfloat16",
    "eos_token_id": 5,
}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in MIXTRAL.items() if name != key}


def test_config_is_read_into_the_model_config() -> None:
    config = build(MIXTRAL).config
    assert (config.name, config.hidden, config.vocab, len(config.layers)) == ("mixtral", 32, 96, 2)
    assert (config.dtype, config.max_context, config.tied_embeddings) == (torch.bfloat16, 64, False)
    assert config.eos_token_ids == (5,)
    assert build({**MIXTRAL, "eos_token_id": [5, 9]}).config.eos_token_ids == (5, 9)
    assert build({**MIXTRAL, "eos_token_id": None}).config.eos_token_ids == ()


def test_family_is_found_by_type_or_by_class() -> None:
    assert build(without("model_type")) == build(MIXTRAL) == build(without("architectures"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, r"'llama'.*mixtral, qwen2_moe"),
        ({"model_type": "gpt_oss"}, "attention sinks"),
        ({"model_type": "deepseek_v3"}, "MLA"),
        ({"model_type": None, "architectures": ["FooForCausalLM"]}, "FooForCausalLM"),
        ({"model_type": None, "architectures": None}, "neither"),
        ({"architectures": ["MixtralForSequenceClassification"]}, "MixtralForCausalLM"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"gptq.*bfloat16 checkpoint"),
        ({"quantization_config": {}}, "unknown"),
        ({"hidden_act": "relu"}, "relu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"torch_dtype": "float64"}, "float64"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        build({**MIXTRAL, **change})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_key_value_heads": 3}, r"4 query heads.*3"),
        ({"num_experts_per_tok": 5}, r"5 active.*4"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
    ],
)
def test_wrong_numbers_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build({**MIXTRAL, **change})


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_hidden_layers", "num_local_experts", "torch_dtype"])
def test_missing_keys_are_named(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build(without(key))


def test_a_tied_model_reads_its_head_from_the_embedding_and_ignores_another() -> None:
    tied = build({**MIXTRAL, "tie_word_embeddings": True})
    names = {spec.name: [piece.name for piece in spec.pieces] for spec in tied.resident_tensors}
    assert names["head"] == names["embedding"] == ["model.embed_tokens.weight"]
    assert tied.ignored == ("lm_head.weight",)
    assert build(MIXTRAL).ignored == ()


def test_rows_of_every_piece_are_inside_its_tensor() -> None:
    granite = {**MIXTRAL, "model_type": "granitemoe", "architectures": ["GraniteMoeForCausalLM"]}
    for spec in build(granite).layer_tensors[1]:
        for piece in spec.pieces:
            if piece.rows is not None:
                begin, end = piece.rows
                assert 0 <= begin < end <= piece.shape[0] * piece.shape[1]
