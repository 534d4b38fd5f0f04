"""Finds the family of a config.json and builds its architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from moelens.errors import UnsupportedModelError
from moelens.models import dbrx, granitemoe, mixtral, olmoe, qwen2_moe, qwen3_moe
from moelens.models.architecture import Architecture
from moelens.models.config import Quantization
from moelens.models.quantization import quantize
from moelens.models.raw_config import RawConfig
from moelens.models.read import check_model

_FAMILIES: Mapping[str, tuple[str, Callable[[RawConfig, torch.dtype | None], Architecture]]] = {
    "mixtral": ("MixtralForCausalLM", mixtral.build),
    "qwen2_moe": ("Qwen2MoeForCausalLM", qwen2_moe.build),
    "qwen3_moe": ("Qwen3MoeForCausalLM", qwen3_moe.build),
    "olmoe": ("OlmoeForCausalLM", olmoe.build),
    "granitemoe": ("GraniteMoeForCausalLM", granitemoe.build),
    "dbrx": ("DbrxForCausalLM", dbrx.build),
}

# Families that are known but not run yet, and what they need that is missing.
_MISSING: Mapping[str, str] = {
    "deepseek_v2": "latent attention (MLA) and routing by groups",
    "deepseek_v3": "latent attention (MLA) and routing by groups",
    "deepseek_v32": "latent attention (MLA) and sparse attention",
    "kimi_k2": "latent attention (MLA) and routing by groups",
    "glm4_moe": "a router that chooses by biased sigmoid scores",
    "glm4_moe_lite": "latent attention (MLA)",
    "dots1": "a router that chooses by biased sigmoid scores",
    "minimax_m2": "a router that chooses by biased sigmoid scores",
    "ernie4_5_moe": "a router that chooses by biased scores, and rotary embedding of adjacent pairs",
    "gpt_oss": "attention sinks, a clamped activation and expert biases",
    "qwen3_next": "linear attention layers",
    "qwen3_5_moe": "linear attention layers",
    "phimoe": "the sparse-mixer router and LongRoPE",
    "llama4": "chunked attention and experts that scale their input",
    "llama4_text": "chunked attention and experts that scale their input",
    "granitemoeshared": "an ungated shared expert",
    "granitemoehybrid": "Mamba layers",
    "jamba": "Mamba layers",
    "nemotron_h": "Mamba layers",
    "lfm2_moe": "convolution layers",
    "jetmoe": "routed attention",
}


def build(
    raw: Mapping[str, object], dtype: torch.dtype | None = None, quantization: Quantization | None = None
) -> Architecture:
    """The architecture that a config.json describes, to be run in `dtype` (None: the config's own, float16 being run
    in bfloat16), its weights quantised as they are loaded if `quantization` says how.

    Raises UnsupportedModelError for what moelens can't run and ConfigError for a config that is incomplete or wrong.
    """
    config = RawConfig(raw)
    class_name, build_family = _FAMILIES[_family(config)]
    named = config.texts("architectures")
    if named and class_name not in named:
        raise config.unsupported("architectures", list(named), f"moelens runs a {class_name} of this family")
    _check_not_quantised(config)
    architecture = build_family(config, dtype)
    config.check_all_read()
    check_model(architecture.config)
    return architecture if quantization is None else quantize(architecture, quantization)


def _family(config: RawConfig) -> str:
    """The supported `model_type`, or that of a class in `architectures` when there is none."""
    by_class = {class_name: family for family, (class_name, _) in _FAMILIES.items()}
    named = config.texts("architectures")
    if config.value("model_type") is not None:
        key, found = "model_type", config.text("model_type")
    elif named:
        key, found = "architectures", named[0]
    else:
        raise UnsupportedModelError(
            f'{config.where}: neither "model_type" nor "architectures" says what the model is: {_supported()}.'
        )
    family = by_class.get(found, found)
    if family in _FAMILIES:
        return family
    reason = f"moelens lacks {_MISSING[family]}" if family in _MISSING else "moelens does not know this model"
    raise UnsupportedModelError(f'{config.where}: "{key}" is {found!r}: {reason}: {_supported()}.')


def _supported() -> str:
    return f"it runs {', '.join(_FAMILIES)}"


def _check_not_quantised(config: RawConfig) -> None:
    for key in ("quantization_config", "compression_config"):
        if config.value(key) is None:
            continue
        method = config.section(key).text("quant_method", "unknown")
        raise UnsupportedModelError(
            f'{config.where}: "{key}" says that the weights are quantised ({method}): moelens runs unquantised '
            "weights: use the model's bfloat16 checkpoint."
        )
