"""What a request's parameters do to its row of logits before a token is picked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moelens.request import Request
from moelens.sampling_params import SamplingParams

Row = npt.NDArray[np.float32]  # [V]


def is_adjusted(request: Request) -> bool:
    """Whether `adjust` would change the request's logits."""
    params = request.params
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or params.min_tokens > request.num_output_tokens
        or bool(params.logit_bias)
        or params.allowed_token_ids is not None
        or bool(params.bad_words_token_ids)
    )


def adjust(row: Row, request: Request, eos_token_ids: Sequence[int]) -> None:
    """Change a row in place, in vLLM's order: masks, then the bias, then the penalties."""
    params = request.params
    if params.allowed_token_ids is not None:
        _keep_only(row, params.allowed_token_ids)
    for words in params.bad_words_token_ids:
        _forbid(row, words, request)
    if params.min_tokens > request.num_output_tokens:
        row[list(eos_token_ids)] = -np.inf
        row[list(params.stop_token_ids or ())] = -np.inf
    if params.logit_bias:
        row[list(params.logit_bias)] += np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
    if params.repetition_penalty != 1.0:
        _divide_repeated(row, request, np.float32(params.repetition_penalty))
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        _subtract_counted(row, request, params)


def _keep_only(row: Row, token_ids: Sequence[int]) -> None:
    kept = row[list(token_ids)]
    row.fill(-np.inf)
    row[list(token_ids)] = kept


def _forbid(row: Row, words: Sequence[int], request: Request) -> None:
    """Mask the last token of a sequence when the output already ends with the others."""
    before = len(words) - 1
    if before <= request.num_output_tokens and (
        before == 0 or tuple(request.output_token_ids[-before:]) == tuple(words[:-1])
    ):
        row[words[-1]] = -np.inf


def _divide_repeated(row: Row, request: Request, penalty: np.float32) -> None:
    seen = np.array(request.prompt_token_ids)
    if request.num_output_tokens:
        seen = np.concatenate([seen, np.array(request.output_token_ids)])
    logits = row[seen]  # a token that was seen twice is read twice and written twice, with one value
    row[seen] = np.where(logits > 0, logits / penalty, logits * penalty)


def _subtract_counted(row: Row, request: Request, params: SamplingParams) -> None:
    if request.num_output_tokens:
        seen, counts = np.unique(np.array(request.output_token_ids), return_counts=True)
        row[seen] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
        row[seen] -= np.float32(params.presence_penalty)
