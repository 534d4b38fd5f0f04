"""Request: what a waiting one costs, and where its randomness comes from."""

from __future__ import annotations

import sys
from array import array

from hypothesis import given
from hypothesis import strategies as st

from moelens.request import Request, mix, request_seed
from moelens.sampling_params import SamplingParams


def test_a_waiting_request_holds_its_tokens_and_little_more() -> None:
    request = Request(1 << 20, array("i", [1, 2, 3]), SamplingParams(), 1 << 60)
    assert request.num_tokens == 3 and not request.finished
    own = [getattr(request, name) for name in Request.__slots__ if name not in ("prompt_token_ids", "params")]
    containers = [value for value in own if isinstance(value, (list, dict, array))]
    assert containers == []
    assert sys.getsizeof(request) <= 200
    assert not hasattr(request, "__dict__")


def test_output_tokens_are_kept_from_the_first_on() -> None:
    request = Request(0, array("i", [1, 2]), SamplingParams(), 0)
    request.output_token_ids.append(9)
    request.output_token_ids.append(8)
    assert list(request.output_token_ids) == [9, 8]
    assert request.num_tokens == 4 and request.num_output_tokens == 2


def test_mix_is_splitmix64() -> None:
    # The first outputs of the published generator for seed 1234567.
    state, gamma = 1234567, 0x9E3779B97F4A7C15
    outputs = [mix((state + i * gamma) % 2**64) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.integers(0, 100))
def test_a_seed_has_64_bits_and_depends_on_the_arrival(llm_seed: int, arrival: int, sample: int) -> None:
    params = SamplingParams()
    seed = request_seed(params, llm_seed, arrival, sample)
    assert 0 <= seed < 2**64
    assert seed != request_seed(params, llm_seed, arrival + 1, sample)
    assert seed != request_seed(params, llm_seed, arrival, sample + 1)


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 10**6))
def test_an_own_seed_forgets_the_arrival_but_not_the_sample(own: int, arrival: int) -> None:
    params = SamplingParams(seed=own)
    assert request_seed(params, 1, arrival, 0) == request_seed(params, 2, arrival + 5, 0)
    assert request_seed(params, 1, arrival, 0) != request_seed(params, 1, arrival, 1)
