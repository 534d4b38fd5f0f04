"""Rotary frequencies against transformers, and the forms that are refused."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moelens.errors import ConfigError, UnsupportedModelError
from moelens.models.config import Rope
from moelens.models.raw_config import RawConfig
from moelens.models.rope import read_rope

HEAD_DIM = 64
CONTEXT = 4096


def read(default_theta: float = 10_000.0, **raw: Any) -> Rope:
    return read_rope(RawConfig(raw), HEAD_DIM, default_theta=default_theta, max_context=CONTEXT)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.5},
        LLAMA3,
        YARN,
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
        {**YARN, "truncate": False},
        {**YARN, "attention_factor": 1.5},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
        {"rope_type": "yarn", "factor": 4.0},
    ],
)
def test_frequencies_equal_transformers(scaling: dict[str, Any]) -> None:
    config = LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": 500_000.0, **scaling},
    )
    expected, magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config)
    rope = read(rope_parameters={"rope_theta": 500_000.0, **scaling})
    torch.testing.assert_close(torch.tensor(rope.inverse_frequencies), expected, rtol=2e-6, atol=0)
    assert rope.magnitude == pytest.approx(magnitude, rel=1e-12)
    assert read(rope_theta=500_000.0, rope_scaling=scaling) == rope
    old = dict(scaling)
    old["type"] = old.pop("rope_type")
    assert read(rope_theta=500_000.0, rope_scaling=old) == rope


def test_plain_frequencies() -> None:
    rope = read(rope_theta=100.0)
    assert rope.rotary_dim == HEAD_DIM
    assert rope.inverse_frequencies == pytest.approx([100.0 ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)])
    assert rope.magnitude == 1.0


def test_base_is_the_inner_one_then_the_outer_one_then_the_familys() -> None:
    inner = read(rope_theta=7.0, rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    assert inner == read(rope_theta=50.0)
    assert read(default_theta=50.0) == inner == read(rope_theta=50.0, rope_scaling=None)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}}, "longrope"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]}}, "mrope_section"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3.0}}, "beta_fast"),
    ],
)
def test_forms_that_are_not_computed_are_refused(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read(**raw)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"rope_scaling": {"type": "linear"}}, '"factor" is missing'),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_scaling": 3}, "rope_scaling"),
        ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "delete the one that is wrong"),
    ],
)
def test_wrong_values_are_named(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read(**raw)


def test_odd_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="15"):
        read_rope(RawConfig({}), 15, default_theta=1e4, max_context=8)
