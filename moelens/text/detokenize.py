"""From token ids to the text that they add to a prompt, all at once or as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

CONTEXT_TOKENS = 6  # of the prompt's end, enough to know whether its text goes on with a space
CHARACTER_TOKENS = 4  # of which a character may be made, one per byte
UNFINISHED = "\ufffd"  # what a decoder shows for bytes that are no character, or not yet


class Decoder(Protocol):
    """Token ids to text, with no clean-up of spaces, so that more tokens never change the text before them."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class IncrementalText:
    """The text of an output that grows by one token at a time.

    Only a few tokens are decoded each time: those that were new the last time the text was whole, and those since.
    A character whose bytes are still coming is held back.
    """

    __slots__ = ("_decoder", "_known", "_skip_special", "_window", "text")

    def __init__(self, decoder: Decoder, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._decoder = decoder
        self._skip_special = skip_special_tokens
        self._window = _context(decoder, prompt_token_ids, skip_special_tokens)
        self._known = len(self._window)  # tokens of the window whose text is known
        self.text = ""

    def append(self, token_id: int) -> str:
        """Take in the next token; returns the text that is now certain to follow."""
        self._window.append(token_id)
        before, added = _continue(self._decoder, self._window, self._known, self._skip_special)
        if not added or added.endswith(UNFINISHED):
            return ""
        if not before.endswith(UNFINISHED):  # else the prompt ended inside a character, whose bytes stay together
            del self._window[: self._known]
        self._known = len(self._window)
        self.text += added
        return added


def output_text(
    decoder: Decoder, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], skip_special_tokens: bool
) -> str:
    """The text that the output adds to the prompt."""
    context = _context(decoder, prompt_token_ids, skip_special_tokens)
    return _continue(decoder, context + list(output_token_ids), len(context), skip_special_tokens)[1]


def _context(decoder: Decoder, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> list[int]:
    """The last tokens of the prompt, from where a character begins."""
    for count in range(CONTEXT_TOKENS, CONTEXT_TOKENS + CHARACTER_TOKENS):
        context = list(prompt_token_ids[-count:])
        if not decoder.decode(context, skip_special_tokens=skip_special_tokens).startswith(UNFINISHED):
            return context
    return list(prompt_token_ids[-CONTEXT_TOKENS:])


def _continue(decoder: Decoder, token_ids: list[int], known: int, skip_special_tokens: bool) -> tuple[str, str]:
    """The text of the tokens before `known`, and what those from there on add to it."""
    before = decoder.decode(token_ids[:known], skip_special_tokens=skip_special_tokens) if known else ""
    whole = decoder.decode(token_ids, skip_special_tokens=skip_special_tokens)
    shared = before if whole.startswith(before) else before.rstrip(UNFINISHED)  # a character was only begun there
    return before, whole[len(shared) :]
