"""The forms in which prompts are given, and the token ids that they come to."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

from moelens.errors import ValidationError
from moelens.text.tokenizer import Tokenizer

TEXTS_AT_ONCE = 256  # the tokenizer works on so many in parallel, and so many are the steps of the progress bar


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class _Tokens(TypedDict):
    prompt_token_ids: Sequence[int]


class TokensPrompt(_Tokens, total=False):
    """A prompt as token ids; `prompt`, their text, is only handed on to the output."""

    prompt: str


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
_ALTERNATIVES = "give a str, a list of token ids, {'prompt': …} or {'prompt_token_ids': …}"


@dataclass(frozen=True)
class PromptLimits:
    """What the model takes: token ids below `vocab`, and prompts shorter than `max_model_len` tokens."""

    vocab: int
    max_model_len: int


@dataclass(frozen=True)
class Rendered:
    """A prompt's text, if it is known, and its token ids."""

    text: str | None
    token_ids: array[int]


def list_prompts(prompts: Prompt | Iterable[Prompt]) -> Sequence[Prompt]:
    """One prompt or many, as many."""
    if isinstance(prompts, (str, Mapping)):
        return [cast(Prompt, prompts)]
    if not isinstance(prompts, Iterable):
        raise ValidationError(
            f"prompts must be a prompt or a list of prompts, got {type(prompts).__name__}: {_ALTERNATIVES}.",
            parameter="prompts",
            value=prompts,
        )
    listed = prompts if isinstance(prompts, Sequence) else list(prompts)
    if listed and isinstance(listed[0], int):
        return [cast(Sequence[int], listed)]
    return cast(Sequence[Prompt], listed)


def render_prompts(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer | None,
    limits: PromptLimits,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> Iterator[Rendered]:
    """Token ids of each prompt, in order, made as they are asked for.

    Raises ValidationError, which names the prompt by its index.
    """
    for first in range(0, len(prompts), TEXTS_AT_ONCE):
        chunk = [_parse(prompt, first + i) for i, prompt in enumerate(prompts[first : first + TEXTS_AT_ONCE])]
        for index, (text, token_ids) in enumerate(chunk, first):
            if tokenizer is not None and text is not None and token_ids is None:
                _check_characters(text, index, tokenizer, limits)
        texts = [text for text, token_ids in chunk if token_ids is None and text is not None]
        encoded = iter(_encode(texts, tokenizer, tokenization_kwargs))
        for index, (text, given) in enumerate(chunk, first):
            token_ids = next(encoded) if given is None else given
            _check(token_ids, index, limits)
            yield Rendered(text, token_ids)


def _encode(
    texts: list[str], tokenizer: Tokenizer | None, tokenization_kwargs: Mapping[str, Any] | None
) -> list[array[int]]:
    if not texts:
        return []
    if tokenizer is None:
        raise ValidationError(
            "A prompt of text needs a tokenizer, but skip_tokenizer_init=True was given: give token ids "
            "({'prompt_token_ids': …}) or leave skip_tokenizer_init out.",
            parameter="prompts",
            value=texts[0],
        )
    return tokenizer.encode(texts, tokenization_kwargs)


def _parse(prompt: object, index: int) -> tuple[str | None, array[int] | None]:
    """A prompt's text and token ids; one of them may be unknown."""
    if isinstance(prompt, str):
        return prompt, None
    if isinstance(prompt, Mapping):
        return _parse_mapping(prompt, index)
    return None, _token_ids(prompt, index)


def _parse_mapping(prompt: Mapping[str, Any], index: int) -> tuple[str | None, array[int] | None]:
    unknown = [key for key, value in prompt.items() if key not in ("prompt", "prompt_token_ids") and value is not None]
    if unknown:
        raise _wrong(index, f"{', '.join(map(repr, unknown))} is not supported: {_ALTERNATIVES}.", prompt)
    text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if text is not None and not isinstance(text, str):
        raise _wrong(index, f"'prompt' must be a str, got {type(text).__name__}.", prompt)
    if text is None and token_ids is None:
        raise _wrong(index, f"neither 'prompt' nor 'prompt_token_ids' is given: {_ALTERNATIVES}.", prompt)
    return text, None if token_ids is None else _token_ids(token_ids, index)


def _token_ids(token_ids: Any, index: int) -> array[int]:
    if not isinstance(token_ids, Iterable):
        raise _wrong(index, f"a prompt can't be a {type(token_ids).__name__}: {_ALTERNATIVES}.", token_ids)
    try:
        return array("i", token_ids)
    except (TypeError, OverflowError) as error:
        raise _wrong(index, f"token ids must be integers ({error}).", token_ids) from error


def _check_characters(text: str, index: int, tokenizer: Tokenizer, limits: PromptLimits) -> None:
    """Refuse a text that is too long however it is cut: encoding megabytes takes minutes."""
    if len(text) > limits.max_model_len * tokenizer.longest_token:
        raise _wrong(
            index,
            f"The decoder prompt ({len(text)} characters) is longer than the maximum model length of "
            f"{limits.max_model_len} tokens can hold (at most {tokenizer.longest_token} characters each). "
            "Shorten the prompt or raise `max_model_len`.",
            len(text),
        )


def _check(token_ids: array[int], index: int, limits: PromptLimits) -> None:
    length = len(token_ids)
    if not length:
        raise _wrong(index, "The decoder prompt cannot be empty.", length)
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < limits.vocab:
            raise _wrong(index, f"Token id {token_id} is out of vocabulary, which has {limits.vocab} ids.", token_id)
    if length > limits.max_model_len:
        raise _wrong(
            index,
            f"The decoder prompt (length {length}) is longer than the maximum model length of {limits.max_model_len}. "
            "Make sure that `max_model_len` is no smaller than the number of text tokens, or shorten the prompt.",
            length,
        )
    if length == limits.max_model_len:
        raise _wrong(
            index,
            f"The decoder prompt (length {length}) plus the number of requested output tokens (at least 1) is longer "
            f"than the maximum model length of {limits.max_model_len}. Make sure that `max_model_len` is no smaller "
            "than the number of text tokens (prompt + requested output tokens), or shorten the prompt.",
            length,
        )


def _wrong(index: int, message: str, value: object) -> ValidationError:
    return ValidationError(f"Prompt {index}: {message}", parameter="prompts", value=value)
