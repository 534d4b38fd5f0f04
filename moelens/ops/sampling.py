"""Picks a token for each row of logits; what a row gives depends on its own request alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from moelens.ops.adjust import adjust, is_adjusted
from moelens.ops.constraining import Constrainer
from moelens.ops.interface import Ops, SamplingRows
from moelens.outputs import Logprob
from moelens.request import Request
from moelens.sampling_params import SamplingParams

RUN = 512  # logits that are looked at together to find the largest
LEAST_TOP_P = 1e-9  # keeps one token of any vocabulary, and is not 0 in float32

_NOT_FINITE = "the model's logits were not finite"
_ALL_MASKED = "allowed_token_ids, bad_words, min_tokens and structured_outputs together leave no token to pick"


class SampledToken(NamedTuple):
    """A picked token. With an `error` nothing could be picked, and `token_id` means nothing."""

    token_id: int
    logprobs: dict[int, Logprob] | None = None
    error: str | None = None


class Sampler:
    """Adjusts logits as each request's parameters say, picks tokens and reports log-probabilities.

    Log-probabilities are those of the model itself, before any adjustment (vLLM's raw_logprobs).
    """

    def __init__(self, ops: Ops, *, vocab: int, eos_token_ids: Sequence[int], threads: int = 1) -> None:
        self._ops = ops
        self._constrainer = Constrainer(vocab, threads)
        self._vocab = vocab
        self._eos_token_ids = tuple(token_id for token_id in eos_token_ids if token_id < vocab)
        self._rules = _Rules([], vocab)  # of the last rows

    @property
    def constraint_seconds(self) -> float:
        """Time that grammars have taken so far, but for masking logits."""
        return self._constrainer.seconds

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[SampledToken]:
        """logits [R, V] float32 on the host, which may be modified -> one token for each of R requests."""
        assert logits.shape == (len(requests), self._vocab)
        errors: list[str | None] = [None] * len(requests)
        changed = [i for i, one in enumerate(requests) if one.params.grammar or is_adjusted(one)]
        if changed:  # the others are looked at when their token is known
            self._check_finite(logits, changed, errors)
            changed = [i for i in changed if errors[i] is None]
        raw = {i: logits[i].clone() for i in changed if requests[i].params.num_logprobs is not None}
        constrained = [i for i in changed if requests[i].params.grammar]
        self._mask(logits, requests, constrained, errors)
        for index in changed:
            if errors[index] is None and is_adjusted(requests[index]):
                row = logits[index].numpy()
                adjust(row, requests[index], self._eos_token_ids)
                if row.max() == -np.inf:
                    errors[index] = _ALL_MASKED
        for index, error in enumerate(errors):
            if error is not None:
                logits[index] = 0.0  # anything that can be sampled
        token_ids = self._ops.sample(logits, self._rows(requests)).tolist()
        for index, token_id in enumerate(token_ids):
            if token_id < 0:
                errors[index] = errors[index] or _NOT_FINITE
        going_on = [i for i in constrained if errors[i] is None]
        if going_on:
            self._constrainer.take([requests[i] for i in going_on], [token_ids[i] for i in going_on])
        return [
            SampledToken(token_ids[index], None, errors[index])
            if errors[index] is not None or request.params.num_logprobs is None
            else _with_logprobs(token_ids[index], raw.get(index, logits[index]), request)
            for index, request in enumerate(requests)
        ]

    def _check_finite(self, logits: torch.Tensor, indices: list[int], errors: list[str | None]) -> None:
        """Note which of the rows hold what is not finite, before it is changed."""
        rows = logits if len(indices) == len(logits) else logits[torch.tensor(indices)]
        for index, one in zip(indices, torch.isfinite(rows.amax(dim=1)).tolist(), strict=True):
            if not one:  # NaN and infinity survive a maximum
                errors[index] = _NOT_FINITE

    def _mask(
        self, logits: torch.Tensor, requests: Sequence[Request], constrained: list[int], errors: list[str | None]
    ) -> None:
        """Forbid what the grammars of the rows `constrained` don't allow, and note which have failed."""
        if not constrained:
            return
        allowed, failures = self._constrainer.masks([requests[i] for i in constrained])
        self._ops.mask_logits(logits, allowed, torch.tensor(constrained, dtype=torch.int32))
        for index, failure in zip(constrained, failures, strict=True):
            errors[index] = failure

    def add_prompt_logprobs(self, logits: torch.Tensor, request: Request, position: int) -> None:
        """Append the log-probabilities of the prompt token at `position`, which logits [V] float32 predict."""
        if request.prompt_logprobs is None:
            request.prompt_logprobs = [None]  # nothing predicts the first token
        assert len(request.prompt_logprobs) == position
        wanted = request.params.prompt_logprobs
        assert wanted is not None
        request.prompt_logprobs.append(token_logprobs(logits, request.prompt_token_ids[position], wanted))

    def _rows(self, requests: Sequence[Request]) -> SamplingRows:
        params = [request.params for request in requests]
        if params != self._rules.params:
            self._rules = _Rules(params, self._vocab)
        return self._rules.rows(requests)


class _Rules:
    """How tokens are picked for rows with these parameters, which most steps share with the one before."""

    def __init__(self, params: list[SamplingParams], vocab: int) -> None:
        self.params = params
        self._temperature = _floats([0.0 if p.is_greedy else p.temperature for p in params])
        self._top_k = torch.tensor([min(max(p.top_k, 0), vocab) for p in params], dtype=torch.int32)
        self._top_p = _floats([max(p.top_p, LEAST_TOP_P) for p in params])
        self._min_p = _floats([p.min_p for p in params])
        self._undrawn = torch.zeros(len(params)) if all(p.is_greedy for p in params) else None

    def rows(self, requests: Sequence[Request]) -> SamplingRows:
        """Of requests with these parameters."""
        uniform = self._undrawn
        if uniform is None:
            drawn = uniforms([one.seed for one in requests], [one.num_output_tokens for one in requests])
            uniform = torch.from_numpy(drawn)
        return SamplingRows(self._temperature, self._top_k, self._top_p, self._min_p, uniform)


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float32]:
    """A number in [0, 1) for each (seed, position): 24 bits of element `position` of splitmix64 started at `seed`."""
    state = np.array(seeds, np.uint64)
    state = state + np.uint64(0x9E3779B97F4A7C15) * (np.array(positions, np.uint64) + np.uint64(1))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = (state ^ (state >> np.uint64(31))) >> np.uint64(40)
    numbers: npt.NDArray[np.float32] = np.ldexp(state.astype(np.float32), -24)
    return numbers


def token_logprobs(
    logits: torch.Tensor, token_id: int, count: int, others: Sequence[int] | None = None
) -> dict[int, Logprob]:
    """Log-probabilities from logits [V]: of `token_id`, and of `others` or else of the `count` likeliest (-1: all)."""
    logprobs = torch.log_softmax(logits, dim=0)  # one row at a time: no other row can change its bits
    found = {token_id: _ranked(logprobs, token_id)}
    if others is not None:
        found.update((other, _ranked(logprobs, other)) for other in others if other != token_id)
        return found
    values, ids = largest(logprobs, len(logprobs) if count == -1 else min(count, len(logprobs)))
    for rank, (value, other) in enumerate(zip(values.tolist(), ids.tolist(), strict=True), start=1):
        found[other] = Logprob(value, rank)
    return found


def largest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of values [V], largest first, and where they are.

    They lie in the `count` runs with the largest maxima, which are found much sooner than by one `topk`.
    """
    runs = len(values) // RUN
    if count * 8 > runs:
        return torch.topk(values, count)
    maxima = values[: runs * RUN].view(runs, RUN).amax(dim=1)
    starts = torch.topk(maxima, count).indices * RUN
    rest = torch.arange(runs * RUN, len(values))
    ids = torch.cat([(starts[:, None] + torch.arange(RUN)).flatten(), rest])
    found = torch.topk(values[ids], count)
    return found.values, ids[found.indices]


def _ranked(logprobs: torch.Tensor, token_id: int) -> Logprob:
    values = logprobs.numpy()  # torch compares 10 times slower
    return Logprob(float(values[token_id]), 1 + int(np.count_nonzero(values > values[token_id])))


def _with_logprobs(token_id: int, raw: torch.Tensor, request: Request) -> SampledToken:
    """Log-probabilities are of the logits [V] before they were changed."""
    count = request.params.num_logprobs
    assert count is not None
    return SampledToken(token_id, token_logprobs(raw, token_id, count, request.params.logprob_token_ids))


def _floats(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
