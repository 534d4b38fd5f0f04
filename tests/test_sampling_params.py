"""SamplingParams: every message, and the one form of every field."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

from moelens.errors import ValidationError
from moelens.outputs import RequestOutputKind
from moelens.sampling_params import SamplingParams

MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n must be at least 1, got 0."),
    ({"n": 16385}, "n must be at most 16384, got 16385."),
    ({"n": 1.0}, "n must be an int, but is of type <class 'float'>"),
    ({"presence_penalty": 2.5}, "presence_penalty must be in [-2, 2], got 2.5."),
    ({"frequency_penalty": -2.5}, "frequency_penalty must be in [-2, 2], got -2.5."),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be greater than zero, got 0.0."),
    ({"repetition_penalty": math.inf}, "repetition_penalty must be a finite number, got inf."),
    ({"temperature": -0.5}, "temperature must be non-negative, got -0.5."),
    ({"temperature": 2.5}, "temperature must be in [0, 2], got 2.5."),
    ({"temperature": math.nan}, "temperature must be a finite number, got nan."),
    ({"temperature": "hot"}, "temperature must be a number, got str"),
    ({"top_p": 0.0}, "top_p must be in (0, 1], got 0.0."),
    ({"top_p": math.nan}, "top_p must be in (0, 1], got nan."),
    ({"top_k": -2}, "top_k must be 0 (disable), or at least 1, got -2."),
    ({"top_k": 1.5}, "top_k must be an integer, got float"),
    ({"min_p": 1.5}, "min_p must be in [0, 1], got 1.5."),
    ({"max_tokens": 0}, "max_tokens must be at least 1, got 0."),
    ({"max_tokens": 1.0}, "max_tokens must be an integer, got float"),
    ({"min_tokens": -1}, "min_tokens must be greater than or equal to 0, got -1."),
    ({"min_tokens": 17}, "min_tokens must be less than or equal to max_tokens=16, got 17."),
    ({"logprobs": -2}, "logprobs must be non-negative or -1, got -2."),
    ({"prompt_logprobs": -2}, "prompt_logprobs must be non-negative or -1, got -2."),
    ({"seed": "x"}, "seed must be an integer, got str"),
    ({"stop": ["a", ""]}, "stop cannot contain an empty string."),
    ({"stop": ""}, "stop cannot contain an empty string."),
    ({"stop": [1]}, "stop must contain only strings, got [1]."),
    ({"stop": 1}, "stop must be a list, got int"),
    (
        {"stop": "a", "detokenize": False},
        "stop strings are only supported when detokenize is True. Set detokenize=True to use stop.",
    ),
    ({"stop_token_ids": ["a"]}, "stop_token_ids must contain only integers, got ['a']."),
    ({"bad_words": [""]}, "bad_words cannot contain an empty string. Got bad_words=['']"),
    ({"allowed_token_ids": []}, "allowed_token_ids is not None and empty!"),
    ({"logit_bias": {"a": 1.0}}, "logit_bias contains key(s) that cannot be converted to integer token IDs: ['a']"),
    ({"logit_bias": {1: math.nan}}, "logit_bias[1] must be a number, got nan."),
    ({"ignore_eos": "yes"}, "ignore_eos must be True or False, got 'yes'"),
    ({"n": 2, "temperature": 0.0}, "n must be 1 when using greedy sampling, got 2."),
    (
        {"logprob_token_ids": list(range(129))},
        "Requested logprob_token_ids of length 129, which is greater than max allowed: 128",
    ),
    (
        {"logprob_token_ids": [1, 2], "logprobs": 3},
        "When both logprobs and logprob_token_ids are set, logprobs must equal len(logprob_token_ids). "
        "Got logprobs=3, len(logprob_token_ids)=2.",
    ),
]


@pytest.mark.parametrize(("fields", "message"), MESSAGES, ids=[str(list(f)) + m[:20] for f, m in MESSAGES])
def test_a_wrong_value_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingParams(**fields)
    assert str(caught.value) == message
    assert caught.value.parameter in fields
    assert isinstance(caught.value, ValueError)


UNSUPPORTED: dict[str, Any] = {
    "flat_logprobs": True,
    "extra_args": {"a": 1},
    "thinking_token_budget": 5,
    "repetition_detection": {"min_count": 2},
    "prompt_logprob_token_ids": [1],
    "prompt_logprob_start": 1,
    "routed_experts_prompt_start": 3,
    "trace_decode_token_ids": [1],
    "stream_interval": 2,
    "skip_clone": True,
    "spaces_between_special_tokens": False,
    "output_kind": RequestOutputKind.DELTA,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"^{name}=.* is not supported by moelens: .+\.$") as caught:
        SamplingParams(**{name: UNSUPPORTED[name]})
    assert caught.value.parameter == name


def test_the_neutral_value_of_what_is_not_supported_is_accepted() -> None:
    SamplingParams(thinking_token_budget=-1, flat_logprobs=False, structured_outputs=None, skip_clone=False)
    SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, skip_reading_prefix_cache=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_token", "the nearest is 'max_tokens'"),
        ("temprature", "the nearest is 'temperature'"),
        ("best_of", "use n and choose by cumulative_logprob"),
        ("use_beam_search", "no beam search"),
        ("logits_processors", "use logit_bias"),
        ("zzzz", "it has n, presence_penalty"),
    ],
)
def test_an_unknown_keyword_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=name) as caught:
        SamplingParams(**{name: 1})
    assert hint in str(caught.value)


def test_the_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.seed) == (16, 0, None)
    assert (params.stop, params.stop_token_ids, params.bad_words) == ([], [], [])
    assert (params.logprobs, params.prompt_logprobs, params.logit_bias) == (None, None, None)
    assert params.detokenize and params.skip_special_tokens and not params.include_stop_str_in_output


def test_fields_have_one_form() -> None:
    params = SamplingParams(
        seed=-1, stop="end", stop_token_ids=[3, 1, 3], bad_words=("a", "a"), logit_bias={"7": -500, 8: 1}
    )
    assert params.seed is None
    assert params.stop == ["end"]
    assert params.stop_token_ids == [3, 1]
    assert params.bad_words == ["a"]
    assert params.logit_bias == {7: -100.0, 8: 1.0}
    assert SamplingParams(logprobs=True, prompt_logprobs=False).logprobs == 1
    assert SamplingParams(logprobs=True, prompt_logprobs=False).prompt_logprobs is None


def test_numbers_of_numpy_are_numbers() -> None:
    assert SamplingParams(temperature=np.float32(0.5), max_tokens=np.int64(3)).max_tokens == 3


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-6])
def test_greedy_makes_the_filters_neutral(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, top_p=0.5, top_k=3, min_p=0.2)
    assert params.is_greedy
    assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)


def test_a_tiny_temperature_is_raised_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert SamplingParams(temperature=0.005).temperature == 0.01
    assert "temperature 0.005 is less than 0.01" in caplog.text


def test_a_clone_shares_nothing_and_is_checked() -> None:
    params = SamplingParams(stop=["a"], logit_bias={1: 1.0})
    clone = params.clone()
    assert clone == params
    assert clone.stop is not params.stop and clone.logit_bias is not params.logit_bias
    params.max_tokens = 0
    with pytest.raises(ValidationError, match="max_tokens must be at least 1, got 0"):
        params.clone()


def test_a_misspelt_field_can_not_be_set() -> None:
    with pytest.raises(AttributeError):
        SamplingParams().max_token = 3  # type: ignore[attr-defined]


def test_params_can_be_copied_and_pickled() -> None:
    params = SamplingParams(max_tokens=5, stop=["a"])
    assert pickle.loads(pickle.dumps(params)) == params
    assert copy.deepcopy(params) == params


def test_from_optional_takes_none_for_a_default() -> None:
    params = SamplingParams.from_optional(n=None, temperature=None, top_p=None, max_tokens=None, top_k=4)
    assert (params.n, params.temperature, params.top_p, params.top_k, params.max_tokens) == (1, 1.0, 1.0, 4, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logprobs": 21}, "Requested sample logprobs of 21, which is greater than max allowed: 20"),
        ({"logprobs": -1}, "Requested sample logprobs of 100, which is greater than max allowed: 20"),
        ({"prompt_logprobs": 21}, "Requested prompt logprobs of 21, which is greater than max allowed: 20"),
        ({"allowed_token_ids": [100]}, "allowed_token_ids contains out-of-vocab token id!"),
        (
            {"stop_token_ids": [5, 100]},
            "token_id(s) [100] in stop_token_ids contain out-of-vocab token ids. Vocabulary size: 100",
        ),
        (
            {"logit_bias": {-1: 1.0}},
            "token_id(s) [-1] in logit_bias contain out-of-vocab token ids. Vocabulary size: 100",
        ),
        (
            {"logprob_token_ids": [100]},
            "token_id(s) [100] in logprob_token_ids contain out-of-vocab token ids. Vocabulary size: 100",
        ),
    ],
)
def test_what_depends_on_the_model_is_verified(fields: dict[str, Any], message: str) -> None:
    params = SamplingParams(**fields)
    with pytest.raises(ValidationError) as caught:
        params.verify(vocab=100, max_logprobs=20)
    assert str(caught.value) == message
    assert caught.value.parameter in fields


def test_all_log_probabilities_are_allowed_without_a_limit() -> None:
    SamplingParams(logprobs=-1, prompt_logprobs=-1).verify(vocab=100, max_logprobs=-1)
