"""One prompt and what grew from it: the record that scheduler, sampler and stopping rules share."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Literal

from moelens.constraint import Constraint
from moelens.sampling_params import SamplingParams

if TYPE_CHECKING:
    from moelens.outputs import Logprob

FinishReason = Literal["stop", "length", "abort", "error"]

_MASK = (1 << 64) - 1


class Request:
    """One sequence of tokens on its way to an end.

    A million of them may wait: a waiting one holds its prompt (shared by the samples of one prompt), the shared
    params and numbers, and everything that grows is made when it is first needed. `request_id` counts arrivals; `seed`
    (64 bits) is all the randomness it has. `text_state` belongs to the stopping rules, `constraint`
    to the sampler. Times are in seconds of
    `time.monotonic`, 0 until they happen.
    """

    __slots__ = (
        "_output_token_ids",
        "arrival_time",
        "constraint",
        "cumulative_logprob",
        "finish_reason",
        "first_token_time",
        "last_token_time",
        "logprobs",
        "num_cached_tokens",
        "params",
        "preemptions",
        "prompt_logprobs",
        "prompt_token_ids",
        "request_id",
        "seed",
        "stop_reason",
        "text_state",
    )

    def __init__(
        self,
        request_id: int,
        prompt_token_ids: array[int],
        params: SamplingParams,
        seed: int,
        arrival_time: float = 0.0,
    ) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.seed = seed
        self.arrival_time = arrival_time
        self.first_token_time = 0.0
        self.last_token_time = 0.0
        self.cumulative_logprob = 0.0
        self.num_cached_tokens = 0
        self.preemptions = 0
        self.logprobs: list[dict[int, Logprob]] | None = None
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.text_state: object | None = None
        self.constraint: Constraint | None = None
        self._output_token_ids: array[int] | None = None

    @property
    def output_token_ids(self) -> array[int]:
        """The tokens picked so far, made when first asked for."""
        if self._output_token_ids is None:
            self._output_token_ids = array("i")
        return self._output_token_ids

    @property
    def num_output_tokens(self) -> int:
        """Tokens picked so far."""
        return 0 if self._output_token_ids is None else len(self._output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the output."""
        output = self._output_token_ids
        return len(self.prompt_token_ids) + (0 if output is None else len(output))

    @property
    def finished(self) -> bool:
        """Whether it has come to an end."""
        return self.finish_reason is not None


def mix(value: int) -> int:
    """A 64-bit hash of 64 bits (the finaliser of splitmix64): every bit of the input stirs every bit of the output."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def request_seed(params: SamplingParams, llm_seed: int, arrival: int, sample: int) -> int:
    """The seed of sample `sample` of the prompt that arrived as number `arrival`.

    With `params.seed` it depends on that and the sample alone, so that the prompt gives the same text in any company.
    """
    start = mix(params.seed & _MASK) if params.seed is not None else mix(mix(~llm_seed & _MASK) ^ arrival)
    return mix(start ^ mix(sample))
