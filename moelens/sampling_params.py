"""What a caller asks of one generation: vLLM's `SamplingParams`, its names and defaults."""

from __future__ import annotations

import dataclasses
import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moelens.constraint import Grammar
from moelens.outputs import RequestOutputKind
from moelens.sampling_values import (
    UNSUPPORTED,
    clamped_bias,
    count_of,
    is_integer,
    keyword_hint,
    outside_vocabulary,
    require_integer,
    unique,
    wrong,
)
from moelens.structured_outputs import StructuredOutputsParams

logger = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5  # temperatures under this mean greedy
LEAST_TEMPERATURE = 1e-2  # smaller ones would overflow the softmax
MOST_SEQUENCES = 16384
MOST_LOGPROB_TOKEN_IDS = 128


@dataclass(slots=True)
class SamplingParams:
    """How to choose the tokens of one request and when to end it; the fields, order and defaults are vLLM's.

    After construction `stop`, `stop_token_ids` and `bad_words` are lists without repetitions, `structured_outputs` is a
    StructuredOutputsParams where its fields were given, and greedy sampling
    (temperature < 1e-5) has neutral top_p, top_k and min_p. `LLM` works on a checked copy, so changing a field later
    is safe and is checked then.

    Raises ValidationError for a value out of range and TypeError for a keyword that does not exist.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: Sequence[int] | None = None
    prompt_logprob_start: int | None = None
    logprob_token_ids: Sequence[int] | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    skip_clone: bool = False
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    extra_args: Mapping[str, Any] | None = None
    bad_words: Sequence[str] | None = None
    skip_reading_prefix_cache: bool | None = None
    thinking_token_budget: int | None = None
    repetition_detection: object = None
    routed_experts_prompt_start: int = 0
    trace_decode_token_ids: Sequence[int] | None = None
    bad_words_token_ids: tuple[tuple[int, ...], ...] = field(default=(), init=False, repr=False, compare=False)
    grammar: Grammar | None = field(default=None, init=False, repr=False, compare=False)

    def __new__(cls, *args: object, **kwargs: object) -> SamplingParams:
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        for name in kwargs:
            if name not in known:
                raise TypeError(f"SamplingParams has no argument {name!r}{keyword_hint(name, known)}.")
        return object.__new__(cls)

    def __post_init__(self) -> None:
        self.normalise()

    def normalise(self) -> None:
        """Bring all fields into their one form, and check them."""
        self._refuse_unsupported()
        if self.structured_outputs is not None:
            self.structured_outputs = StructuredOutputsParams.of(self.structured_outputs)
        self._list_sequences()
        self.logprobs = count_of(self.logprobs)
        self.prompt_logprobs = count_of(self.prompt_logprobs)
        if self.seed == -1:
            self.seed = None
        self._check_types()
        if 0 < self.temperature < LEAST_TEMPERATURE and self.temperature >= GREEDY_BELOW:
            logger.warning(
                "temperature %s is less than %s, which may cause numerical errors nan or inf in tensors. "
                "We have maxed it out to %s.",
                self.temperature,
                LEAST_TEMPERATURE,
                LEAST_TEMPERATURE,
            )
            self.temperature = LEAST_TEMPERATURE
        self._check_ranges()
        self._check_lengths()
        self._check_words()
        if self.is_greedy:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0
            if self.n > 1:
                raise wrong(f"n must be 1 when using greedy sampling, got {self.n}.", "n", self.n)

    @classmethod
    def from_optional(cls, **fields: Any) -> SamplingParams:
        """Like the constructor, but None stands for the default wherever None has no meaning of its own."""
        optional = {"n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p"}
        return cls(**{name: value for name, value in fields.items() if value is not None or name not in optional})

    def clone(self) -> SamplingParams:
        """A checked copy that shares nothing mutable with this one."""
        copy = dataclasses.replace(self)
        copy.bad_words_token_ids = self.bad_words_token_ids
        copy.grammar = self.grammar
        return copy

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> list[str]:
        """`stop`, as the list that it is after construction."""
        assert isinstance(self.stop, list)
        return self.stop

    @property
    def num_logprobs(self) -> int | None:
        """Log-probabilities wanted per output token beside the sampled one's; None: none at all."""
        if self.logprobs is not None:
            return self.logprobs
        return len(self.logprob_token_ids) if self.logprob_token_ids else None

    def verify(self, *, vocab: int, max_logprobs: int) -> None:
        """Check what depends on the model: token ids against `vocab`, counts against `max_logprobs` (-1: no limit).

        Raises ValidationError.
        """
        most = vocab if max_logprobs == -1 else max_logprobs
        for kind, count in (("sample", self.logprobs), ("prompt", self.prompt_logprobs)):
            if count is not None and (wanted := vocab if count == -1 else count) > most:
                raise wrong(
                    f"Requested {kind} logprobs of {wanted}, which is greater than max allowed: {most}",
                    "logprobs" if kind == "sample" else "prompt_logprobs",
                    wanted,
                )
        for name in ("logprob_token_ids", "stop_token_ids", "logit_bias"):
            outside = outside_vocabulary(getattr(self, name), vocab)
            if outside:
                raise wrong(
                    f"token_id(s) {outside} in {name} contain out-of-vocab token ids. Vocabulary size: {vocab}",
                    name,
                    outside,
                )
        if outside := outside_vocabulary(self.allowed_token_ids, vocab):
            raise wrong("allowed_token_ids contains out-of-vocab token id!", "allowed_token_ids", outside)

    def _refuse_unsupported(self) -> None:
        for name, (neutral, reason) in UNSUPPORTED.items():
            value = getattr(self, name)
            if not any(value is other or value == other for other in neutral):
                raise wrong(f"{name}={value!r} is not supported by moelens: {reason}.", name, value)

    def _list_sequences(self) -> None:
        self.stop = [self.stop] if isinstance(self.stop, str) else unique("stop", self.stop)
        self.stop_token_ids = unique("stop_token_ids", self.stop_token_ids)
        self.bad_words = unique("bad_words", self.bad_words)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = unique("allowed_token_ids", self.allowed_token_ids)
        if self.logprob_token_ids is not None:
            self.logprob_token_ids = unique("logprob_token_ids", self.logprob_token_ids)
        if self.logit_bias is not None:
            self.logit_bias = clamped_bias(self.logit_bias)

    def _check_types(self) -> None:
        if not is_integer(self.n):
            raise wrong(f"n must be an int, but is of type {type(self.n)}", "n", self.n)
        for name in ("top_k", "min_tokens"):
            require_integer(name, getattr(self, name))
        for name in ("seed", "max_tokens", "logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name))
        numbers_ = ("presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "min_p")
        for name in numbers_:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise wrong(f"{name} must be a number, got {type(value).__name__}", name, value)
        for name in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                value = getattr(self, name)
                raise wrong(f"{name} must be True or False, got {value!r}", name, value)

    def _check_ranges(self) -> None:
        if self.n < 1:
            raise wrong(f"n must be at least 1, got {self.n}.", "n", self.n)
        if self.n > MOST_SEQUENCES:
            raise wrong(f"n must be at most {MOST_SEQUENCES}, got {self.n}.", "n", self.n)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not -2.0 <= value <= 2.0:
                raise wrong(f"{name} must be in [-2, 2], got {value}.", name, value)
        for name in ("repetition_penalty", "temperature"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise wrong(f"{name} must be a finite number, got {value}.", name, value)
        if self.repetition_penalty <= 0.0:
            message = f"repetition_penalty must be greater than zero, got {self.repetition_penalty}."
            raise wrong(message, "repetition_penalty", self.repetition_penalty)
        if self.temperature < 0.0:
            message = f"temperature must be non-negative, got {self.temperature}."
            raise wrong(message, "temperature", self.temperature)
        if self.temperature > 2.0:
            raise wrong(f"temperature must be in [0, 2], got {self.temperature}.", "temperature", self.temperature)
        if not 0.0 < self.top_p <= 1.0:
            raise wrong(f"top_p must be in (0, 1], got {self.top_p}.", "top_p", self.top_p)
        if self.top_k < -1:
            raise wrong(f"top_k must be 0 (disable), or at least 1, got {self.top_k}.", "top_k", self.top_k)
        if not 0.0 <= self.min_p <= 1.0:
            raise wrong(f"min_p must be in [0, 1], got {self.min_p}.", "min_p", self.min_p)

    def _check_lengths(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise wrong(f"max_tokens must be at least 1, got {self.max_tokens}.", "max_tokens", self.max_tokens)
        if self.min_tokens < 0:
            message = f"min_tokens must be greater than or equal to 0, got {self.min_tokens}."
            raise wrong(message, "min_tokens", self.min_tokens)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            message = f"min_tokens must be less than or equal to max_tokens={self.max_tokens}, got {self.min_tokens}."
            raise wrong(message, "min_tokens", self.min_tokens)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and value < -1:
                raise wrong(f"{name} must be non-negative or -1, got {value}.", name, value)
        if self.logprob_token_ids is not None:
            self._check_logprob_token_ids(len(self.logprob_token_ids))

    def _check_logprob_token_ids(self, count: int) -> None:
        if count > MOST_LOGPROB_TOKEN_IDS:
            raise wrong(
                f"Requested logprob_token_ids of length {count}, "
                f"which is greater than max allowed: {MOST_LOGPROB_TOKEN_IDS}",
                "logprob_token_ids",
                count,
            )
        if self.logprobs is not None and self.logprobs != count:
            raise wrong(
                "When both logprobs and logprob_token_ids are set, logprobs must equal len(logprob_token_ids). "
                f"Got logprobs={self.logprobs}, len(logprob_token_ids)={count}.",
                "logprob_token_ids",
                count,
            )

    def _check_words(self) -> None:
        for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
            token_ids = getattr(self, name)
            if token_ids and not all(map(is_integer, token_ids)):
                raise wrong(f"{name} must contain only integers, got {token_ids}.", name, token_ids)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise wrong("allowed_token_ids is not None and empty!", "allowed_token_ids", self.allowed_token_ids)
        for name in ("stop", "bad_words"):
            words = getattr(self, name)
            if not all(isinstance(word, str) for word in words):
                raise wrong(f"{name} must contain only strings, got {words}.", name, words)
        if not all(self.stop_strings):
            raise wrong("stop cannot contain an empty string.", "stop", self.stop)
        if self.stop and not self.detokenize:
            message = "stop strings are only supported when detokenize is True. Set detokenize=True to use stop."
            raise wrong(message, "stop", self.stop)
        if not all(self.bad_words or ()):
            message = f"bad_words cannot contain an empty string. Got bad_words={self.bad_words}"
            raise wrong(message, "bad_words", self.bad_words)
