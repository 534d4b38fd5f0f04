"""What a caller gets back: vLLM's output records."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True)
class Logprob:
    """The natural log-probability of a token; `rank` counts from 1, the most likely token of the vocabulary."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[int, Logprob] | None]
SampleLogprobs = list[dict[int, Logprob]]


@dataclass(slots=True)
class CompletionOutput:
    """One generated text.

    `finish_reason` is "stop", "length", "abort" or "error". `stop_reason` is the stop string or token id that ended it
    (None for the end-of-sequence token), or what went wrong. `logprobs` has a dict per token: the most likely ones and
    the sampled one. `cumulative_logprob` is None unless logprobs were asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: SampleLogprobs | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether this text has come to its end."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestStateStats:
    """How a request went; times are seconds of `time.monotonic`, 0 for what did not happen."""

    num_generation_tokens: int = 0
    arrival_time: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    first_token_latency: float = 0.0
    preemptions: int = 0


@dataclass(slots=True)
class RequestOutput:
    """A prompt and the texts generated from it, in the order of their index.

    `request_id` counts the prompts that the LLM was given, and `prompt_index` those of the call that gave this one.
    `prompt_logprobs` has an entry per prompt token (None for the first) when they were asked for. `num_cached_tokens`
    counts prompt tokens that were not computed because they were already cached.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestStateStats | None = None
    num_cached_tokens: int = 0
    prompt_index: int = 0


@dataclass(frozen=True, slots=True)
class Metric:
    """A count that only grows ("counter"), or a state ("gauge"); `help` says of what."""

    name: str
    value: float
    kind: Literal["counter", "gauge"] = "counter"
    help: str = ""


class RequestOutputKind(enum.Enum):
    """When vLLM emits outputs. `LLM` returns finished requests only, so the first and last mean the same here."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2
