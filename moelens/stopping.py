"""When a request ends, and with what text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moelens.constraint import Constraint
from moelens.request import FinishReason, Request
from moelens.text.detokenize import Decoder, IncrementalText, output_text


@dataclass(frozen=True)
class Finish:
    """Why a request ends; `stop_reason` is the stop string or token id, None for the end-of-sequence token."""

    reason: FinishReason
    stop_reason: int | str | None = None


class WatchedText:
    """The growing text of a request that has stop strings; `cut` is the text at the end once one was found."""

    __slots__ = ("_growing", "cut")

    def __init__(self, decoder: Decoder, request: Request) -> None:
        self._growing = IncrementalText(decoder, request.prompt_token_ids, request.params.skip_special_tokens)
        self.cut: str | None = None

    def append(self, token_id: int, request: Request) -> str | None:
        """Take in the next token; returns the stop string that it completes, if any."""
        params = request.params
        added = self._growing.append(token_id)
        if not added or request.num_output_tokens <= params.min_tokens:
            return None
        text = self._growing.text
        found = find_stop(text, params.stop_strings, len(text) - len(added))
        if found is None:
            return None
        stop, end = found
        self.cut = text[:end] if params.include_stop_str_in_output else text[: end - len(stop)]
        return stop


class Stopping:
    """The rules by which requests end. `tokenizer` may be None when no request has stop strings."""

    def __init__(self, tokenizer: Decoder | None, eos_token_ids: Sequence[int], max_model_len: int) -> None:
        self._decoder = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)
        self.max_model_len = max_model_len

    def check(self, request: Request) -> Finish | None:
        """Whether the token that was just appended ends the request."""
        params = request.params
        count = request.num_output_tokens
        token_id = request.output_token_ids[-1]
        if count >= params.min_tokens:
            if token_id in self.eos_token_ids and not params.ignore_eos:
                return Finish("stop")
            if params.stop_token_ids and token_id in params.stop_token_ids:
                return Finish("stop", token_id)
        if params.stop and (stop := self._stop_string(request, token_id)) is not None:
            return Finish("stop", stop)
        if request.constraint is not None and request.constraint.exhausted:
            return _end_of_grammar(request.constraint)
        if request.num_tokens >= self.max_model_len or (params.max_tokens is not None and count >= params.max_tokens):
            return Finish("length")
        return None

    def _stop_string(self, request: Request, token_id: int) -> str | None:
        if request.text_state is None:
            assert self._decoder is not None, "stop strings without a tokenizer are refused when a request is made"
            request.text_state = WatchedText(self._decoder, request)
        assert isinstance(request.text_state, WatchedText)
        return request.text_state.append(token_id, request)


def _end_of_grammar(constraint: Constraint) -> Finish:
    """The grammar allows nothing more, or it has failed and the text is not complete."""
    if constraint.error is not None:
        return Finish("error", constraint.error)
    constraint.completed = True
    return Finish("stop")


def final_text(decoder: Decoder, request: Request) -> str:
    """The text of a finished request: cut at the stop string, or without the token that ended it.

    What completed a grammar stays.
    """
    if isinstance(request.text_state, WatchedText) and request.text_state.cut is not None:
        return request.text_state.cut
    params = request.params
    shown = request.output_token_ids
    completed = request.constraint is not None and request.constraint.completed  # all of it belongs to the text
    if request.finish_reason == "stop" and not params.include_stop_str_in_output and not completed:
        shown = shown[:-1]
    return output_text(decoder, request.prompt_token_ids, shown, params.skip_special_tokens)


def find_stop(text: str, stops: Sequence[str], begin: int) -> tuple[str, int] | None:
    """The first of `stops` to be complete as `text` grows from `begin` characters on, and where it ends.

    Of several that end at the same character, the first of `stops`.
    """
    best: tuple[str, int] | None = None
    for stop in stops:
        start = text.find(stop, max(0, begin - len(stop) + 1))
        if start >= 0 and (best is None or start + len(stop) < best[1]):
            best = (stop, start + len(stop))
    return best
