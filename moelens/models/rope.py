"""Reads a config's rotary embedding and makes its frequencies."""

from __future__ import annotations

import math

import torch

from moelens.errors import ConfigError
from moelens.models.config import Rope
from moelens.models.raw_config import RawConfig

_KINDS = ("default", "linear", "llama3", "yarn")


def read_rope(raw: RawConfig, head_dim: int, *, default_theta: float, max_context: int) -> Rope:
    """The rotary embedding in either form: `rope_parameters`, or `rope_theta` with `rope_scaling`."""
    if head_dim % 2:
        raise ConfigError(f"{raw.where}: rotary embedding turns pairs, and the head size {head_dim} is odd.")
    section = _section(raw)
    theta = section.positive("rope_theta", raw.positive("rope_theta", default_theta))
    kind = section.text("rope_type", section.text("type", "default"))
    if kind not in _KINDS:
        raise section.unsupported("rope_type", kind, f"moelens has {', '.join(_KINDS)}")
    if section.number("partial_rotary_factor", 1.0) != 1.0:
        raise section.unsupported("partial_rotary_factor", section.value("partial_rotary_factor"), "it must be 1")
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    magnitude = 1.0
    if kind == "linear":
        plain = plain / section.positive("factor")
    elif kind == "llama3":
        plain = _llama3(section, plain, _original_context(raw, section, max_context))
    elif kind == "yarn":
        plain, magnitude = _yarn(section, plain, theta, _original_context(raw, section, max_context), max_context)
    section.check_only_read()
    return Rope(tuple(plain.tolist()), magnitude)


def _section(raw: RawConfig) -> RawConfig:
    old, new = raw.value("rope_scaling"), raw.value("rope_parameters")
    if old and new and old != new:
        raise ConfigError(
            f'{raw.where}: "rope_scaling" is {old!r} and "rope_parameters" is {new!r}: delete the one that is wrong.'
        )
    return raw.section("rope_scaling" if old else "rope_parameters")


def _original_context(raw: RawConfig, section: RawConfig, max_context: int) -> int:
    """How many tokens the model saw before its context was extended."""
    key = "original_max_position_embeddings"
    inner = section.optional_size(key)
    return raw.optional_size(key) or inner or max_context


def _llama3(section: RawConfig, plain: torch.Tensor, original: int) -> torch.Tensor:
    """Wavelengths above a bound are stretched by `factor`, those below another stay, in between it is blended."""
    factor = section.positive("factor")
    low, high = section.positive("low_freq_factor"), section.positive("high_freq_factor")
    if high <= low:
        raise section.wrong("high_freq_factor", f"a number above low_freq_factor ({low})", high)
    turns = original * plain / (2 * math.pi)  # in the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / factor + kept * plain


def _yarn(
    section: RawConfig, plain: torch.Tensor, theta: float, original: int, max_context: int
) -> tuple[torch.Tensor, float]:
    """Dimensions that turn often keep their frequency, those that turn seldom are stretched; cos and sin grow."""
    factor = section.optional_number("factor") or max_context / original
    pairs = len(plain)

    def dimension(turns: float) -> float:
        """The pair that makes `turns` turns in the original context."""
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    first = dimension(section.positive("beta_fast", 32.0))
    last = dimension(section.positive("beta_slow", 1.0))
    if section.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    width = last - first or 0.001
    stretched = ((torch.arange(pairs).float() - first) / width).clamp(0, 1)
    return plain / factor * stretched + plain * (1 - stretched), _yarn_magnitude(section, factor)


def _yarn_magnitude(section: RawConfig, factor: float) -> float:
    given = section.optional_number("attention_factor")
    mscale, mscale_all = section.optional_number("mscale"), section.optional_number("mscale_all_dim")

    def growth(multiple: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiple * math.log(factor) + 1.0

    if given is not None:
        return given
    return growth(mscale) / growth(mscale_all) if mscale and mscale_all else growth(1.0)
