"""Checkpoints as transformers saves them, from the folder to the store: every tensor bit for bit."""

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_checkpoint import PanelOps, assert_stored

from moelens.checkpoint.load import load_weights
from moelens.checkpoint.source import find_checkpoint, read_config
from moelens.errors import CheckpointError
from moelens.models.registry import build

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def mixtral():
    return transformers.MixtralConfig(**SIZES, **HEADS, intermediate_size=48, num_local_experts=3)


def qwen2_moe():
    sizes = {"intermediate_size": 80, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 56}
    return transformers.Qwen2MoeConfig(**SIZES, **HEADS, **sizes, num_experts=4, mlp_only_layers=[0])


def granitemoe():
    config = transformers.GraniteMoeConfig(**SIZES, **HEADS, intermediate_size=48, num_local_experts=3)
    config.tie_word_embeddings = True
    return config


def dbrx():
    return transformers.DbrxConfig(
        vocab_size=96,
        d_model=64,
        n_layers=2,
        n_heads=4,
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
    )


FAMILIES = {function.__name__: function for function in (mixtral, qwen2_moe, granitemoe, dbrx)}


def save(folder, family, **options):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.bfloat16)
    model.save_pretrained(folder, **options)


@pytest.mark.parametrize("shard_size", ["50KB", "5GB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_stored(tmp_path, family, shard_size):
    save(tmp_path, family, max_shard_size=shard_size)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "50KB")
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    folder = find_checkpoint(str(tmp_path))
    architecture = build(read_config(folder))
    assert_stored(load_weights(folder, architecture, PanelOps(), threads=2), architecture, tensors)


def test_a_config_of_other_sizes_is_refused(tmp_path):
    save(tmp_path, "mixtral")
    for changed, message in [
        ({"num_hidden_layers": 3}, r"'model.layers.2.*found no such tensor"),
        ({"num_hidden_layers": 1}, r"'model.layers.1.*expected no such tensor"),
        ({"num_local_experts": 4}, r"found no such tensor|expected shape \[4, 64\], found \[3, 64\]"),
        ({"num_local_experts": 2}, r"expected shape \[2, 64\], found \[3, 64\]"),
        ({"intermediate_size": 50}, r"expected shape \[50, 64\], found \[48, 64\]"),
        ({"num_key_value_heads": 4}, r"k_proj.weight': expected shape \[64, 64\], found \[32, 64\]"),
    ]:
        architecture = build(read_config(tmp_path, changed))
        with pytest.raises(CheckpointError, match=message):
            load_weights(tmp_path, architecture, PanelOps(), threads=1)
