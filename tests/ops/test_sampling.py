"""Sampler: adjustments against plain formulas, and results that do not depend on the batch."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.ops.adjust import adjust, is_adjusted
from moelens.ops.reference import ReferenceOps
from moelens.ops.sampling import RUN, SampledToken, Sampler, largest, token_logprobs, uniforms
from moelens.request import Request, mix
from moelens.sampling_params import SamplingParams

VOCAB = 37
EOS = (2, 5)


def make_request(
    prompt: list[int] | None = None, output: list[int] | None = None, seed: int = 7, **fields: Any
) -> Request:
    params = SamplingParams(**{"max_tokens": 100, **fields})
    params.bad_words_token_ids = tuple(fields.get("bad_words_token_ids", ()))
    request = Request(0, array("i", prompt or [1]), params, seed)
    request.output_token_ids.extend(output or [])
    return request


def with_bad_words(request: Request, *words: tuple[int, ...]) -> Request:
    request.params.bad_words_token_ids = words
    return request


def make_sampler() -> Sampler:
    return Sampler(ReferenceOps(), vocab=VOCAB, eos_token_ids=EOS)


def adjusted(request: Request, row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    changed = row.astype(np.float32)
    adjust(changed, request, EOS)
    return changed


def random_row(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)


def test_plain_params_need_no_adjustment() -> None:
    assert not is_adjusted(make_request())
    assert not is_adjusted(make_request(output=[3], min_tokens=1, temperature=0.3, top_k=3, stop_token_ids=[4]))


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_covers_prompt_and_output_once(penalty: float) -> None:
    request = make_request([3, 3, 4], [4, 6], repetition_penalty=penalty)
    row = random_row(0)
    row[3], row[4] = 2.0, -1.5
    expected = [(x / penalty if x > 0 else x * penalty) if i in {3, 4, 6} else x for i, x in enumerate(row.tolist())]
    assert is_adjusted(request)
    np.testing.assert_allclose(adjusted(request, row), expected, rtol=1e-6)


def test_presence_and_frequency_cover_the_output_only() -> None:
    request = make_request([3, 9], [4, 6, 4], presence_penalty=0.5, frequency_penalty=-0.25)
    counts = Counter(request.output_token_ids)
    row = random_row(1)
    expected = [x - (-0.25 * counts[i]) - (0.5 if counts[i] else 0.0) for i, x in enumerate(row.tolist())]
    np.testing.assert_allclose(adjusted(request, row), expected, rtol=1e-6)


def test_logit_bias_is_added() -> None:
    row = random_row(2)
    expected = row.copy()
    expected[4] += np.float32(3.5)
    expected[9] -= np.float32(100)
    np.testing.assert_array_equal(adjusted(make_request(logit_bias={4: 3.5, 9: -1000}), row), expected)


def test_allowed_tokens_keep_their_logits() -> None:
    row = random_row(3)
    changed = adjusted(make_request(allowed_token_ids=[4, 1]), row)
    assert np.flatnonzero(np.isfinite(changed)).tolist() == [1, 4]
    assert changed[[1, 4]].tolist() == row[[1, 4]].tolist()


@pytest.mark.parametrize(
    ("output", "words", "masked"),
    [
        ([], [(8,)], [8]),
        ([], [(7, 8)], []),
        ([7], [(7, 8), (9,)], [8, 9]),
        ([6, 7], [(6, 7, 8), (5, 7, 9)], [8]),
        ([7, 6], [(7, 8)], []),
    ],
)
def test_bad_words_lose_their_last_token(output: list[int], words: list[tuple[int, ...]], masked: list[int]) -> None:
    request = with_bad_words(make_request(output=output), *words)
    assert is_adjusted(request)
    assert np.flatnonzero(np.isneginf(adjusted(request, random_row(4)))).tolist() == masked


def test_min_tokens_masks_every_end_until_reached() -> None:
    request = make_request(output=[7], min_tokens=2, stop_token_ids=[11])
    assert np.flatnonzero(np.isneginf(adjusted(request, random_row(5)))).tolist() == [2, 5, 11]
    request.output_token_ids.append(7)
    assert not is_adjusted(request)


def test_greedy_takes_the_largest_adjusted_logit() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[:, 9], logits[:, 8] = 3.0, 2.0
    requests = [make_request(temperature=0), make_request(temperature=0, logit_bias={9: -5})]
    assert [token.token_id for token in make_sampler().sample(logits, requests)] == [9, 8]


def test_logprobs_are_the_models_own() -> None:
    logits = torch.from_numpy(random_row(6)).clone()[None]
    expected = torch.log_softmax(logits[0].double(), 0)
    request = make_request(temperature=0, logit_bias={9: 100}, logprobs=2)
    (token,) = make_sampler().sample(logits, [request])
    assert token.token_id == 9 and token.logprobs is not None
    best = expected.argsort(descending=True).tolist()
    assert set(token.logprobs) == {9, *best[:2]}
    for token_id, logprob in token.logprobs.items():
        assert logprob.logprob == pytest.approx(float(expected[token_id]), abs=1e-6)
        assert logprob.rank == 1 + best.index(token_id)


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (3, 3), (-1, VOCAB)])
def test_the_sampled_token_is_always_among_the_logprobs(count: int, expected: int) -> None:
    logits = torch.from_numpy(random_row(7))
    best = int(logits.argmax())
    found = token_logprobs(logits, best, count)
    assert best in found and len(found) == expected
    assert sum(math.exp(one.logprob) for one in found.values()) <= 1 + 1e-6


@pytest.mark.parametrize("size", [5, RUN, 40 * RUN, 40 * RUN + 3, 100 * RUN + RUN - 1])
@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_the_largest_are_those_of_a_full_sort(size: int, count: int) -> None:
    values = torch.randperm(size, generator=torch.Generator().manual_seed(size)).float()
    found, ids = largest(values, min(count, size))
    expected = torch.sort(values, descending=True)
    assert found.tolist() == expected.values[:count].tolist()
    assert ids.tolist() == expected.indices[:count].tolist()


def test_chosen_token_ids_are_scored_instead_of_the_likeliest() -> None:
    request = make_request(temperature=0, logprob_token_ids=[3, 4])
    logits = torch.from_numpy(random_row(8)).clone()[None]
    (token,) = make_sampler().sample(logits, [request])
    assert token.logprobs is not None
    assert set(token.logprobs) == {3, 4, token.token_id}


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_not_finite_fails_alone(poison: float) -> None:
    sampler = make_sampler()
    logits = torch.stack([torch.from_numpy(random_row(i)) for i in range(3)])
    requests = [make_request(seed=i, logprobs=1) for i in range(3)]
    healthy = sampler.sample(logits.clone(), requests)
    logits[1, 4] = poison
    tokens = sampler.sample(logits, requests)
    assert [token.error for token in tokens] == [None, "the model's logits were not finite", None]
    assert tokens[0] == healthy[0] and tokens[2] == healthy[2]
    assert tokens[1].logprobs is None


def test_a_row_with_every_token_masked_fails_alone() -> None:
    requests = [make_request(allowed_token_ids=[2], min_tokens=1), make_request(temperature=0)]
    tokens = make_sampler().sample(torch.zeros(2, VOCAB), requests)
    assert tokens[0].error is not None and "allowed_token_ids" in tokens[0].error
    assert tokens[1].error is None


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    fields = {
        "temperature": draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        "top_k": draw(st.sampled_from([0, 1, 5, 1000])),
        "top_p": draw(st.sampled_from([1.0, 0.9, 0.1])),
        "min_p": draw(st.sampled_from([0.0, 0.1])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.2])),
        "frequency_penalty": draw(st.sampled_from([0.0, 0.7])),
        "logprobs": draw(st.sampled_from([None, 0, 3])),
        "min_tokens": draw(st.sampled_from([0, 4])),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "output": draw(st.lists(st.integers(0, VOCAB - 1), max_size=5)),
    }
    return random_row(draw(st.integers(0, 2**32 - 1))) * 3, fields


def sample_all(sampler: Sampler, drawn: list[tuple[np.ndarray[Any, Any], dict[str, Any]]]) -> list[SampledToken]:
    logits = torch.from_numpy(np.stack([row for row, _ in drawn]))
    return sampler.sample(logits, [make_request(**fields) for _, fields in drawn])


@settings(max_examples=60, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_row_gives_the_same_in_any_company(drawn: list[Any], random: Any) -> None:
    sampler = make_sampler()
    together = sample_all(sampler, drawn)
    alone = [sample_all(sampler, [one])[0] for one in drawn]
    order = random.sample(range(len(drawn)), len(drawn))
    shuffled = sample_all(sampler, [drawn[i] for i in order])
    assert together == alone
    assert [shuffled[order.index(i)] for i in range(len(drawn))] == alone


def test_steps_with_the_same_and_with_other_parameters_may_follow_each_other() -> None:
    sampler = make_sampler()
    logits = torch.from_numpy(np.stack([random_row(i) for i in range(2)]))
    greedy, warm, narrow = {"temperature": 0.0}, {"temperature": 1.0, "seed": 5}, {"top_p": 0.1, "seed": 5}
    for fields in (greedy, warm, warm | {"output": [1]}, narrow, greedy, warm | {"temperature": 2.0}):
        requests = [make_request(**fields), make_request(**greedy)]
        assert sampler.sample(logits.clone(), requests) == make_sampler().sample(logits.clone(), requests)


def test_wide_rows_give_the_same_logprobs_at_any_offset() -> None:
    """Vector code may treat a row that starts at another alignment differently; sums must not."""
    row = torch.randn(5003, generator=torch.Generator().manual_seed(0))
    found = []
    for offset in range(8):
        held = torch.zeros(5003 + 8)
        held[offset : offset + 5003] = row
        found.append(token_logprobs(held[offset : offset + 5003], 17, 5))
    assert all(other == found[0] for other in found)


def test_uniforms_are_elements_of_splitmix64() -> None:
    seeds, positions = [1234567, 2**64 - 1, 0], [0, 5, 2]
    expected = [
        (mix((s + p * 0x9E3779B97F4A7C15) % 2**64) >> 40) / 2**24 for s, p in zip(seeds, positions, strict=True)
    ]
    found = uniforms(seeds, positions)
    assert found.dtype == np.float32 and found.tolist() == expected


def test_uniforms_are_uniform() -> None:
    drawn = uniforms([mix(i) for i in range(20_000)], [i % 7 for i in range(20_000)])
    assert drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=10, range=(0, 1))
    assert abs(counts - 2000).max() < 200  # over 4 standard deviations


def test_sampling_follows_the_distribution() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    sampler = Sampler(ReferenceOps(), vocab=3, eos_token_ids=())
    requests = [make_request(seed=mix(i)) for i in range(6000)]
    counts = Counter(token.token_id for token in sampler.sample(logits.repeat(6000, 1), requests))
    assert [counts[i] / 6000 for i in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_prompt_logprobs_grow_with_the_prompt() -> None:
    sampler = make_sampler()
    request = make_request([4, 9, 11], prompt_logprobs=1)
    logits = torch.stack([torch.from_numpy(random_row(i)) for i in range(2)])
    for position in (1, 2):
        sampler.add_prompt_logprobs(logits[position - 1], request, position)
    assert request.prompt_logprobs is not None and request.prompt_logprobs[0] is None
    for found, token_id, row in zip(request.prompt_logprobs[1:], [9, 11], logits, strict=True):
        assert found is not None and set(found) == {token_id, int(row.argmax())}
        assert found[token_id].logprob == pytest.approx(float(torch.log_softmax(row.double(), 0)[token_id]), abs=1e-6)
