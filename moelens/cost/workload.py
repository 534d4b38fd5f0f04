"""What a step has to do, counted in tokens and key positions: the common currency of cost, schedule and pipeline."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepShape:
    """The rows of a step or of a part of one.

    `decode_context` is the sum over decode rows of the keys each one sees; `prefill_pairs` the number of (row, key)
    pairs of the prefill rows. Neither knows of sliding windows: they are counts of positions. `logit_rows` rows give
    logits.
    """

    decode_tokens: int = 0
    decode_context: int = 0
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    logit_rows: int = 0

    def __add__(self, other: StepShape) -> StepShape:
        return StepShape(
            self.decode_tokens + other.decode_tokens,
            self.decode_context + other.decode_context,
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_pairs + other.prefill_pairs,
            self.logit_rows + other.logit_rows,
        )

    @property
    def tokens(self) -> int:
        return self.decode_tokens + self.prefill_tokens
