"""The forms that values of `SamplingParams` come in, what moelens has no use for, and errors that name a parameter."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moelens.errors import ValidationError
from moelens.outputs import RequestOutputKind

LARGEST_BIAS = 100.0

# name -> (the values that ask for nothing, why moelens has no other)
UNSUPPORTED: dict[str, tuple[tuple[object, ...], str]] = {
    "flat_logprobs": ((False,), "log-probabilities are returned as a list of dicts"),
    "extra_args": ((None,), "moelens has no plugins that could read it"),
    "thinking_token_budget": ((None, -1), "moelens does not know where a model's thinking ends; use max_tokens"),
    "repetition_detection": ((None,), "use repetition_penalty, frequency_penalty or stop"),
    "prompt_logprob_token_ids": ((None,), "use prompt_logprobs"),
    "prompt_logprob_start": ((None,), "prompt_logprobs always covers the whole prompt"),
    "routed_experts_prompt_start": ((0,), "moelens does not return routed experts"),
    "trace_decode_token_ids": ((None,), "put the tokens into the prompt and use prompt_logprobs"),
    "output_kind": (
        (RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY),
        "results are returned when a request finishes",
    ),
    "stream_interval": ((None,), "results are returned when a request finishes"),
    "skip_clone": ((False,), "moelens copies each object once a call"),
    "spaces_between_special_tokens": ((True,), "the text is what the tokenizer's own decode gives"),
}
_REMOVED = {
    "best_of": "vLLM has removed it; use n and choose by cumulative_logprob",
    "use_beam_search": "moelens has no beam search; use n with a temperature",
    "length_penalty": "moelens has no beam search; use n with a temperature",
    "early_stopping": "moelens has no beam search; use n with a temperature",
    "logits_processors": "moelens has none; use logit_bias, allowed_token_ids or bad_words",
    "guided_decoding": "vLLM has renamed it structured_outputs",
    "truncate_prompt_tokens": "cut the token ids and pass them as prompt_token_ids",
    "max_new_tokens": "it is called max_tokens here",
    "do_sample": "temperature=0 is greedy, and any other samples",
}


def wrong(message: str, parameter: str, value: object) -> ValidationError:
    """The error for one parameter."""
    return ValidationError(message, parameter=parameter, value=value)


def keyword_hint(name: str, known: Sequence[str]) -> str:
    """What to say after the name of a keyword that does not exist."""
    if name in _REMOVED:
        return f": {_REMOVED[name]}"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; the nearest is {nearest[0]!r}" if nearest else f"; it has {', '.join(known)}"


def is_integer(value: object) -> bool:
    """Whether it is a whole number, Python's or numpy's."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def require_integer(name: str, value: object) -> None:
    """Raise ValidationError for anything but a whole number."""
    if not is_integer(value):
        raise wrong(f"{name} must be an integer, got {type(value).__name__}", name, value)


def count_of(value: int | None) -> int | None:
    """OpenAI's chat API gives a bool where vLLM wants a count."""
    if isinstance(value, bool):
        return 1 if value else None
    return value


def unique(name: str, values: Iterable[Any] | None) -> list[Any]:
    """The values as a list without repetitions."""
    if values is None:
        return []
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise wrong(f"{name} must be a list, got {type(values).__name__}", name, values)
    return list(dict.fromkeys(values))


def clamped_bias(logit_bias: Mapping[Any, float]) -> dict[int, float]:
    """Token ids, which JSON makes strings of, and biases within [-100, 100]."""
    biases: dict[int, float] = {}
    invalid: list[object] = []
    for token, bias in logit_bias.items():
        try:
            token_id = int(token)
        except (TypeError, ValueError):
            invalid.append(token)
            continue
        if isinstance(bias, bool) or not isinstance(bias, numbers.Real) or math.isnan(bias):
            raise wrong(f"logit_bias[{token!r}] must be a number, got {bias!r}.", "logit_bias", bias)
        biases[token_id] = min(LARGEST_BIAS, max(-LARGEST_BIAS, float(bias)))
    if invalid:
        message = f"logit_bias contains key(s) that cannot be converted to integer token IDs: {invalid!r}"
        raise wrong(message, "logit_bias", invalid)
    return biases


def outside_vocabulary(token_ids: Iterable[int] | None, vocab: int) -> list[int]:
    """Those of the ids that are no tokens."""
    return [token_id for token_id in token_ids or () if not 0 <= token_id < vocab]
