"""What a step and a job have to do, counted in tokens: the common currency of cost, schedule and pipeline."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from moelens.errors import ConfigError


@dataclass(frozen=True)
class StepShape:
    """The rows of a step or of a part of one.

    `decode_context` is the sum over decode rows of the keys each one sees; `prefill_pairs` the number of (row, key)
    pairs of the prefill rows. Neither knows of sliding windows: they are counts of positions. `logit_rows` rows give
    logits. Of the prefill rows and pairs, `resumed_*` belong to prompts of which earlier steps have cached a beginning.
    """

    decode_tokens: int = 0
    decode_context: int = 0
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    logit_rows: int = 0
    resumed_tokens: int = 0
    resumed_pairs: int = 0

    def __add__(self, other: StepShape) -> StepShape:
        return StepShape(
            self.decode_tokens + other.decode_tokens,
            self.decode_context + other.decode_context,
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_pairs + other.prefill_pairs,
            self.logit_rows + other.logit_rows,
            self.resumed_tokens + other.resumed_tokens,
            self.resumed_pairs + other.resumed_pairs,
        )

    @property
    def tokens(self) -> int:
        return self.decode_tokens + self.prefill_tokens

    @property
    def hosted_tokens(self) -> int:
        """Rows that see cached keys, so that the host attends for them."""
        return self.decode_tokens + self.resumed_tokens

    def cut(self, parts: int) -> list[StepShape]:
        """As many shapes of about equal size, without those that have no rows."""
        values = astuple(self)
        even = [StepShape(*(value // parts + (index < value % parts) for value in values)) for index in range(parts)]
        return [part for part in even if part.tokens]


@dataclass(frozen=True)
class LayerSeconds:
    """What a part's rows take in a layer, on average: `attending` on the host; `choosing` until the router has chosen,
    attention and transfers included; `finishing` on the device from there on, with all of the layer's experts there."""

    attending: float = 0.0
    choosing: float = 0.0
    finishing: float = 0.0


@dataclass(frozen=True)
class RowSeconds:
    """What rows of a step take on each lane, over all layers, by what tells them apart.

    `device_row` and `host_row` are of any row, `device_pair` of a (row, key) pair of a prompt that begins, `host_key`
    of a key that a decode sees, `host_pair` of a pair of a resumed prompt, `up_row` of a row that the host attends for,
    `down_row` of any row on its way to the host.
    """

    device_row: float
    device_pair: float
    host_row: float
    host_key: float
    host_pair: float
    up_row: float
    down_row: float

    def of(self, rows: int, cached: int) -> tuple[float, float, float, float]:
        """Of so many rows of one request, behind so many cached keys: on device, host, and the link up and down."""
        pairs = rows * cached + rows * (rows + 1) // 2
        device, host, up = rows * self.device_row, rows * self.host_row, 0.0
        if cached:
            host += pairs * (self.host_key if rows == 1 else self.host_pair)
            up = rows * self.up_row
        else:
            device += pairs * self.device_pair
        return device, host, up, rows * self.down_row


@dataclass(frozen=True)
class Workload:
    """The requests of a job: `prompt_tokens[i]` and `output_tokens[i]` are those of request i, in order of arrival."""

    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.prompt_tokens) != len(self.output_tokens) or not self.prompt_tokens:
            raise ConfigError(
                f"A workload needs as many outputs as prompts and at least one, got {len(self.prompt_tokens)} prompts "
                f"and {len(self.output_tokens)} outputs."
            )
        if min(self.prompt_tokens) < 1 or min(self.output_tokens) < 1:
            raise ConfigError("Every request of a workload needs at least 1 prompt token and 1 output token.")

    @classmethod
    def even(cls, requests: int, prompt_tokens: int, output_tokens: int) -> Workload:
        """All requests alike."""
        return cls((prompt_tokens,) * requests, (output_tokens,) * requests)

    @classmethod
    def spread(cls, requests: int, mean_tokens: float, longest_tokens: int, output_tokens: int) -> Workload:
        """Prompts of exponentially distributed lengths, cut off at the longest, of the given mean: the shape of
        collections of which only mean and maximum are told. A mean above half of the longest mirrors it. The quantiles
        are dealt out in a fixed shuffled order."""
        if not 1 <= mean_tokens <= longest_tokens:
            raise ConfigError(f"Prompts of at most {longest_tokens} tokens can't have a mean of {mean_tokens:g}.")
        mirrored = 2 * mean_tokens > longest_tokens
        mean = longest_tokens - mean_tokens if mirrored else mean_tokens
        scale = _scale_of_mean(mean, longest_tokens)
        whole = -math.expm1(-longest_tokens / scale)
        drawn = [-scale * math.log1p(-whole * (index + 0.5) / requests) for index in range(requests)]
        lengths = [max(1, min(longest_tokens, round(longest_tokens - one if mirrored else one))) for one in drawn]
        random.Random(0).shuffle(lengths)
        return cls(tuple(lengths), (output_tokens,) * requests)

    @property
    def requests(self) -> int:
        return len(self.prompt_tokens)

    @property
    def mean_prompt_tokens(self) -> float:
        return sum(self.prompt_tokens) / self.requests

    @property
    def mean_output_tokens(self) -> float:
        return sum(self.output_tokens) / self.requests

    @property
    def longest_tokens(self) -> int:
        """Prompt and output tokens of the longest request."""
        return max(map(sum, zip(self.prompt_tokens, self.output_tokens, strict=True)))

    @property
    def total_tokens(self) -> int:
        """Prompt and output tokens of all requests."""
        return sum(self.prompt_tokens) + sum(self.output_tokens)


def _scale_of_mean(mean: float, longest: int) -> float:
    """The scale of an exponential distribution which, cut off at `longest`, has the given mean (by bisection)."""
    low, high = max(mean / 2, 1e-3), 1000.0 * longest
    for _ in range(200):
        scale = (low + high) / 2
        cut_mean = scale - (longest / math.expm1(longest / scale) if longest < 500 * scale else 0.0)
        low, high = (scale, high) if cut_mean < mean else (low, scale)
    return (low + high) / 2
