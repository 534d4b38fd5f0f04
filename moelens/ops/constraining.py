"""Constraints of a step's requests: which tokens their grammars allow, and what the picked ones make of them.

llguidance works on all of them at once, in threads of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from moelens.constraint import Constraint
from moelens.request import Request

_NOTHING_ALLOWED = "structured_outputs allows no token of the vocabulary here"


class Constrainer:
    """Masks for requests whose params have a grammar; `seconds` is the time that this has taken so far."""

    def __init__(self, vocab: int, threads: int) -> None:
        self._words = -(-vocab // 32)
        self._threads = threads
        self._executor: Any = None
        self.seconds = 0.0

    def masks(self, requests: Sequence[Request]) -> tuple[torch.Tensor, list[str | None]]:
        """For each request the tokens that may follow, int32 [R, V/32 rounded up] as `Ops.mask_logits` takes them, and
        what went wrong.
        """
        from llguidance.numpy import fill_next_token_bitmask_par

        begin = time.perf_counter()
        constraints = [constraint_of(request) for request in requests]
        for constraint, request in zip(constraints, requests, strict=True):
            constraint.follow(request.output_token_ids)
        allowed = np.zeros((len(requests), self._words), np.int32)
        pairs: list[tuple[Any, int]] = [(constraint.matcher, row) for row, constraint in enumerate(constraints)]
        fill_next_token_bitmask_par(self._threads_of_llguidance(), pairs, allowed)
        some: list[bool] = np.count_nonzero(allowed, axis=1).astype(bool).tolist()
        errors = [
            constraint.error or (None if any_allowed else _NOTHING_ALLOWED)
            for constraint, any_allowed in zip(constraints, some, strict=True)
        ]
        self.seconds += time.perf_counter() - begin
        return torch.from_numpy(allowed), errors

    def take(self, requests: Sequence[Request], token_ids: Sequence[int]) -> None:
        """Take in the token that was picked for each request."""
        begin = time.perf_counter()
        constraints = [constraint_of(request) for request in requests]
        pairs = [(constraint.matcher, token_id) for constraint, token_id in zip(constraints, token_ids, strict=True)]
        self._threads_of_llguidance().consume_token_par(pairs)
        for constraint in constraints:
            constraint.taken += 1
        self.seconds += time.perf_counter() - begin

    def _threads_of_llguidance(self) -> Any:
        if self._executor is None:
            import llguidance

            self._executor = llguidance.LLExecutor(self._threads)
        return self._executor


def constraint_of(request: Request) -> Constraint:
    """The request's constraint, begun when it is first asked for."""
    if request.constraint is None:
        assert request.params.grammar is not None
        request.constraint = request.params.grammar.start()
    return request.constraint
