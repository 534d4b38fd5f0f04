"""The model's tokenizer: transformers loads it, and is imported only then."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moelens.errors import CheckpointError, ConfigError, ValidationError

MODES = ("auto", "hf")

Message = Mapping[str, Any]


def load_tokenizer(folder: Path, *, mode: str = "auto") -> Tokenizer:
    """The tokenizer whose files lie in `folder`; code that a checkpoint brings along is never run.

    Raises ConfigError for an unknown mode and CheckpointError when there is no usable tokenizer.
    """
    if mode not in MODES:
        raise ConfigError(f"tokenizer_mode={mode!r} is not supported. Use {MODES[0]!r} or {MODES[1]!r}.")
    import transformers  # takes seconds

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises whatever happens to go wrong
        raise CheckpointError(
            f"No tokenizer can be loaded from {folder} ({type(error).__name__}: {_first_line(error)}). Give another "
            "folder or hub id as tokenizer=…, or use skip_tokenizer_init=True and prompts of token ids."
        ) from error
    return Tokenizer(loaded)


class Tokenizer:
    """Text to token ids and back, and conversations to text. `hf` is transformers' own object."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text."""
        token_id: int | None = self.hf.eos_token_id
        return token_id

    @functools.cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, counting a byte of a character as one."""
        return max(map(len, self.hf.get_vocab()), default=1)

    def encode(self, texts: Sequence[str], options: Mapping[str, Any] | None = None) -> list[array[int]]:
        """Token ids of each text, with special tokens unless `options` (of transformers' tokenizer call) say otherwise.

        Raises ValidationError when the tokenizer refuses.
        """
        arguments = {"add_special_tokens": True, "return_attention_mask": False, "verbose": False, **(options or {})}
        try:
            encoded = self.hf(list(texts), **arguments)["input_ids"]
        except Exception as error:
            _refuse_surrogates(texts)
            given = f" with tokenization_kwargs={dict(options)}" if options else ""
            raise ValidationError(f"The tokenizer refused the prompts{given}: {_first_line(error)}") from error
        return [array("i", token_ids) for token_ids in encoded]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids, spaces as they are."""
        text: str = self.hf.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def render(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, special tokens included, by the template given or the model's own.

        Raises ValidationError when there is no template or it refuses.
        """
        if chat_template is None and not self.hf.chat_template:
            raise ValidationError(
                "The model has no chat template: give one with chat_template=…, or use generate() with a plain prompt.",
                parameter="chat_template",
            )
        try:
            text = self.hf.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=None if tools is None else [dict(tool) for tool in tools],
                **(chat_template_kwargs or {}),
            )
        except Exception as error:  # jinja's errors, and transformers' own checks
            raise ValidationError(
                f"The chat template refused the conversation: {_first_line(error)}", parameter="messages"
            ) from error
        assert isinstance(text, str)
        return text


def bad_word_sequences(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences of each word, at the beginning and in the middle of a text.

    The form after a space counts only where it is a sequence of its own with as many tokens, as in vLLM: others end
    with the tokens of the plain form or would forbid parts of longer words.
    """
    sequences: list[tuple[int, ...]] = []
    for word in words:
        texts = [word.lstrip(), " " + word.lstrip()]
        plain, spaced = (tuple(ids) for ids in tokenizer.encode(texts, {"add_special_tokens": False}))
        if not plain:
            raise ValidationError(
                "bad_words entries must tokenize to at least one token.", parameter="bad_words", value=word
            )
        sequences.append(plain)
        if spaced and spaced[0] != plain[0] and len(spaced) == len(plain):
            sequences.append(spaced)
    return tuple(sequences)


def _refuse_surrogates(texts: Sequence[str]) -> None:
    """Raise ValidationError for half a surrogate pair, which JSON can write and no text can hold."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ascii(text[error.start]).strip("'")
            raise ValidationError(
                f"The prompt holds {half} at character {error.start}, half of a surrogate pair, which is no character."
            ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
