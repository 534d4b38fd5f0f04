"""Masks of grammars in the sampler: only what they allow is picked, and their state follows the tokens."""

from __future__ import annotations

import math
from array import array
from typing import Any

import pytest
import torch

from moelens.ops.reference import ReferenceOps
from moelens.ops.sampling import Sampler
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.structured_outputs import StructuredOutputsParams
from moelens.text.grammar import GrammarCompiler
from moelens.text.tokenizer import Tokenizer

VOCAB, EOS = 300, 1


class Texts:
    """Requests and their tokens as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.compiler = GrammarCompiler(tokenizer, VOCAB, [EOS])
        self.sampler = Sampler(ReferenceOps(), vocab=VOCAB, eos_token_ids=[EOS], threads=2)
        self.tokenizer = tokenizer

    def request(self, form: dict[str, Any] | None = None, seed: int = 3, **fields: Any) -> Request:
        params = SamplingParams(**{"temperature": 1.0, "max_tokens": 100, **fields})
        if form is not None:
            params.grammar = self.compiler.compile(StructuredOutputsParams(**form))
        return Request(seed, array("i", [5]), params, seed)

    def write(self, requests: list[Request], steps: int, logits: torch.Tensor | None = None) -> list[str]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            going_on = [r for r in requests if r.stop_reason is None and not (r.constraint and r.constraint.exhausted)]
            if not going_on:
                break
            row = torch.randn(1, VOCAB, generator=generator) if logits is None else logits
            picked = self.sampler.sample(row.repeat(len(going_on), 1), going_on)
            for request, sampled in zip(going_on, picked, strict=True):
                if sampled.error is None:
                    request.output_token_ids.append(sampled.token_id)
                else:
                    request.stop_reason = sampled.error
        return [self.tokenizer.decode(r.output_token_ids, skip_special_tokens=True) for r in requests]


@pytest.fixture
def texts(byte_tokenizer: Tokenizer) -> Texts:
    return Texts(byte_tokenizer)


def test_only_rows_with_a_grammar_are_held_to_it(texts: Texts) -> None:
    requests = [
        texts.request({"choice": ["yes", "no"]}),
        texts.request(),
        texts.request({"regex": "[0-9]{3}"}, temperature=0.0),
        texts.request({"regex": "x"}, seed=9),
    ]
    found = texts.write(requests, 3)
    assert found[0] in ("yes", "no") and found[2].isdigit() and len(found[2]) == 3 and found[3] == "x"
    assert texts.write([texts.request()], 3) == [found[1]], "the free row is what it is alone"
    assert texts.sampler.constraint_seconds > 0


def test_the_end_is_allowed_where_the_text_may_end(texts: Texts) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, EOS] = 50.0
    request = texts.request({"regex": "a{2,5}"}, temperature=0.0)
    assert texts.write([request], 9, logits) == ["aa"] and request.output_token_ids[-1] == EOS
    waiting = texts.request({"regex": "a{2,5}"}, temperature=0.0, min_tokens=4)
    assert texts.write([waiting], 9, logits) == ["aaaa"]


def test_log_probabilities_are_the_models_own(texts: Texts) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    request = texts.request({"regex": "x"}, logprobs=1)
    (sampled,) = texts.sampler.sample(logits.clone(), [request])
    assert sampled.logprobs is not None
    expected = torch.log_softmax(logits[0], 0)
    assert math.isclose(sampled.logprobs[sampled.token_id].logprob, float(expected[sampled.token_id]), rel_tol=1e-6)
    assert int(expected.argmax()) in sampled.logprobs, "the likeliest, though it was forbidden"


def test_the_state_follows_the_tokens_that_were_kept(texts: Texts) -> None:
    """A step whose tokens were dropped, and one that was taken in by another."""
    request = texts.request({"regex": "[ab]c[de]"})
    texts.sampler.sample(torch.zeros(1, VOCAB), [request])
    assert request.constraint is not None and request.constraint.taken == 1 and request.num_output_tokens == 0
    for text in ("a", "ac"):
        request.output_token_ids[:] = texts.tokenizer.encode([text], {"add_special_tokens": False})[0]
        request.constraint.follow(request.output_token_ids)
    assert texts.write([request], 9)[0] in ("acd", "ace")


def test_what_other_parameters_forbid_is_forbidden_still(texts: Texts) -> None:
    letters = {letter: texts.tokenizer.encode([letter], {"add_special_tokens": False})[0][0] for letter in "ab"}
    biased = texts.request({"regex": "[ab]"}, logit_bias={letters["a"]: -100}, temperature=0.0)
    stuck = texts.request({"regex": "[ab]"}, allowed_token_ids=[letters["a"] + 7])
    fine = texts.request({"regex": "[ab]"}, seed=5)
    found = texts.write([biased, stuck, fine], 1, torch.zeros(1, VOCAB))
    assert found[0] == "b" and found[2] in "ab"
    assert "structured_outputs together leave no token" in str(stuck.stop_reason)


def test_a_row_that_is_not_finite_keeps_its_state(texts: Texts) -> None:
    broken, fine = texts.request({"regex": "ab"}), texts.request({"regex": "ab"}, seed=4)
    logits = torch.zeros(2, VOCAB)
    logits[0, 7] = math.nan
    errors = [sampled.error for sampled in texts.sampler.sample(logits, [broken, fine])]
    assert errors == ["the model's logits were not finite", None]
    assert broken.constraint is None and fine.constraint is not None


def test_a_grammar_that_fails_ends_its_own_request(texts: Texts) -> None:
    request, fine = texts.request({"regex": "ab"}), texts.request({"regex": "ab"}, seed=4)
    texts.sampler.sample(torch.zeros(2, VOCAB), [request, fine])
    request.output_token_ids.append(7)  # which the grammar does not allow
    assert request.constraint is not None
    request.constraint.taken = 0
    request.constraint.matcher = request.params.grammar.start().matcher  # type: ignore[union-attr]
    fine.output_token_ids.append(texts.tokenizer.encode(["a"], {"add_special_tokens": False})[0][0])
    first, second = texts.sampler.sample(torch.zeros(2, VOCAB), [request, fine])
    assert first.error and second.error is None
