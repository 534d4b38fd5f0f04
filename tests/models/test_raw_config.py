"""Typed reading: what is accepted, what is refused, and that each message names key, value and remedy."""

import logging
from typing import Any

import pytest
import torch

from moelens.errors import ConfigError, UnsupportedModelError
from moelens.models.raw_config import RawConfig
from moelens.ops.interface import Activation


def test_values_are_read_by_type() -> None:
    raw = RawConfig({"a": 3, "b": 2.5, "c": True, "d": "silu", "e": [1, 2], "f": 7, "g": {"h": 1}, "i": ["x"]})
    assert raw.size("a") == 3
    assert raw.size("missing", "a") == 3
    assert raw.number("b") == 2.5
    assert raw.number("a") == 3.0
    assert raw.flag("c", False) is True
    assert raw.text("d") == "silu"
    assert (raw.integers("e"), raw.integers("f"), raw.integers("missing")) == ((1, 2), (7,), ())
    assert raw.section("g").size("h") == 1
    assert raw.texts("i") == ("x",)
    assert raw.activation("d") is Activation.SILU


def test_null_is_absent() -> None:
    raw = RawConfig({"a": None})
    assert raw.size("a", default=4) == 4
    assert raw.optional_size("a") is None
    assert raw.flag("a", True) is True
    assert raw.section("a").optional_number("b") is None


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("size", 0),
        ("size", -1),
        ("size", 2.0),
        ("size", True),
        ("size", "3"),
        ("number", "3"),
        ("number", True),
        ("number", float("nan")),
        ("number", float("inf")),
        ("positive", 0.0),
        ("text", 3),
        ("integers", "12"),
        ("integers", [1, 2.0]),
        ("integers", [True]),
        ("texts", "abc"),
        ("texts", [1]),
        ("section", [1]),
    ],
)
def test_wrong_types_name_key_value_and_remedy(method: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        getattr(RawConfig({"the_key": value}), method)("the_key")
    message = str(caught.value)
    assert "config.json" in message and '"the_key"' in message and repr(value) in message and "restore" in message


def test_a_flag_is_no_number() -> None:
    with pytest.raises(ConfigError, match=r'"the_key": expected true or false, found 1'):
        RawConfig({"the_key": 1}).flag("the_key", False)


@pytest.mark.parametrize("method", ["size", "number", "text"])
def test_what_is_missing_is_named(method: str) -> None:
    with pytest.raises(ConfigError, match='attn_config: "the_key" is missing'):
        getattr(RawConfig({"attn_config": {}}).section("attn_config"), method)("the_key")


def test_unknown_activations_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r'"hidden_act" is \'relu\'.*silu'):
        RawConfig({"hidden_act": "relu"}).activation("hidden_act")


# --- dtype ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_is_the_configs_or_the_wanted_one(key: str) -> None:
    assert RawConfig({key: "float32"}).dtype(None) is torch.float32
    assert RawConfig({key: "torch.bfloat16"}).dtype(None) is torch.bfloat16
    assert RawConfig({key: "float32"}).dtype(torch.bfloat16) is torch.bfloat16
    assert RawConfig({}).dtype(torch.float32) is torch.float32


def test_float16_runs_in_bfloat16_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "moelens"):
        assert RawConfig({"torch_dtype": "float16"}).dtype(None) is torch.bfloat16
    assert "float16" in caplog.text and "bfloat16" in caplog.text


@pytest.mark.parametrize(
    ("raw", "wanted", "error", "named"),
    [
        ({"dtype": "float8_e4m3fn"}, None, UnsupportedModelError, "float8_e4m3fn"),
        ({}, None, ConfigError, "torch_dtype"),
        ({"dtype": "float32"}, torch.float16, ConfigError, "torch.float16"),
        ({"dtype": 16}, None, ConfigError, "16"),
    ],
)
def test_other_dtypes_are_refused(raw: dict[str, Any], wanted: torch.dtype | None, error: type, named: str) -> None:
    with pytest.raises(error, match=named):
        RawConfig(raw).dtype(wanted)


# --- nothing is ignored -----------------------------------------------------------------------------------------------
def test_a_key_that_was_read_may_say_anything() -> None:
    raw = RawConfig({"sliding_window": 8, "hidden_size": 4})
    raw.optional_size("sliding_window")
    raw.check_all_read()


def test_values_that_change_nothing_pass() -> None:
    RawConfig(
        {"sliding_window": None, "attention_bias": False, "logits_scaling": 1.0, "layer_types": ["full_attention"] * 3}
    ).check_all_read()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sliding_window", 8),
        ("attention_bias", True),
        ("logits_scaling", 2.0),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("routed_scaling_factor", 2.5),
        ("final_logit_softcapping", 30.0),
    ],
)
def test_values_that_would_change_the_result_are_refused(key: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        RawConfig({key: value}).check_all_read()


def test_check_only_read_refuses_the_first_stranger() -> None:
    raw = RawConfig({"name": "silu", "nothing": None, "stranger": 1})
    raw.text("name")
    with pytest.raises(UnsupportedModelError, match="stranger"):
        raw.check_only_read()
