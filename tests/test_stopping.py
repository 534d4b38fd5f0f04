"""The rules by which requests end, with stop strings against an oracle that reads the text letter by letter."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.constraint import Constraint
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.stopping import Finish, Stopping, final_text, find_stop

if TYPE_CHECKING:
    from moelens.text.tokenizer import Tokenizer

EOS = 1


class Letters:
    """Decodes token i as the i-th of these pieces."""

    pieces = ("a", "b", "ab", "ba", "", "aa", "b a", " ")

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(self.pieces[token_id] for token_id in token_ids)


def run(stopping: Stopping, token_ids: Sequence[int], **fields: Any) -> tuple[Request, Finish | None]:
    """Append tokens until the request ends."""
    request = Request(0, array("i", [3, 3]), SamplingParams(**{"max_tokens": None, **fields}), 0)
    for token_id in token_ids:
        request.output_token_ids.append(token_id)
        finish = stopping.check(request)
        if finish is not None:
            request.finish_reason, request.stop_reason = finish.reason, finish.stop_reason
            return request, finish
    return request, None


def run_plain(token_ids: Sequence[int], max_model_len: int = 100, **fields: Any) -> tuple[int, Finish | None]:
    request, finish = run(Stopping(None, [EOS], max_model_len), token_ids, **fields)
    return request.num_output_tokens, finish


def test_the_end_of_sequence_token_ends_it() -> None:
    assert run_plain([5, 1, 6]) == (2, Finish("stop", None))
    assert run_plain([5, 1, 6], ignore_eos=True) == (3, None)


def test_a_stop_token_ends_it_and_is_named() -> None:
    assert run_plain([5, 7, 6], stop_token_ids=[6, 7]) == (2, Finish("stop", 7))
    assert run_plain([5, 1, 6], stop_token_ids=[1]) == (2, Finish("stop", None))
    assert run_plain([5, 1, 6], stop_token_ids=[1], ignore_eos=True) == (2, Finish("stop", 1))


class Matcher:
    """A grammar of so many tokens, which may fail instead of being complete."""

    def __init__(self, tokens: int, error: str = "") -> None:
        self._left, self._error = tokens, error

    def consume_tokens(self, sampled_tokens: list[int]) -> bool:
        self._left -= len(sampled_tokens)
        return True

    def is_stopped(self) -> bool:
        return self._left <= 0

    def is_error(self) -> bool:
        return self.is_stopped() and bool(self._error)

    def get_error(self) -> str:
        return self._error


@pytest.mark.parametrize(("error", "finish"), [("", Finish("stop")), ("too complex", Finish("error", "too complex"))])
def test_a_complete_grammar_ends_it_and_a_failed_one_is_said(error: str, finish: Finish) -> None:
    stopping = Stopping(Letters(), [7], 100)
    request = Request(0, array("i", [3]), SamplingParams(max_tokens=2, min_tokens=2), 0)
    request.constraint = Constraint(Matcher(2, error))  # type: ignore[arg-type]
    found = []
    for token_id in (0, 1):
        request.output_token_ids.append(token_id)
        request.constraint.follow(request.output_token_ids)
        found.append(stopping.check(request))
    assert found == [None, finish], "complete and not too long, though both are so"
    request.finish_reason = finish.reason
    assert final_text(Letters(), request) == "ab", "no token of it only says that it ends"


def test_nothing_but_length_ends_it_before_min_tokens() -> None:
    assert run_plain([1, 1, 1, 1], min_tokens=3) == (3, Finish("stop", None))
    assert run_plain([7, 7, 7], min_tokens=2, stop_token_ids=[7]) == (2, Finish("stop", 7))
    assert run_plain([1, 1, 1, 1], max_model_len=4, min_tokens=3) == (2, Finish("length", None))


def test_lengths_end_it() -> None:
    assert run_plain([5, 5, 5, 5], max_tokens=3) == (3, Finish("length", None))
    assert run_plain([5, 5, 5, 5], max_model_len=5) == (3, Finish("length", None))
    assert run_plain([5, 5, 1], max_tokens=3) == (3, Finish("stop", None))


def first_stop(token_ids: Sequence[int], stops: Sequence[str], min_tokens: int) -> tuple[int, str, str] | None:
    """Tokens used, the stop string and the text before it, letter by letter."""
    text = ""
    for used, token_id in enumerate(token_ids, start=1):
        for letter in Letters.pieces[token_id]:
            text += letter
            for stop in stops:
                if text.endswith(stop) and used > min_tokens:
                    return used, stop, text[: -len(stop)]
    return None


@settings(max_examples=300, deadline=None)
@given(
    token_ids=st.lists(st.integers(0, 7), max_size=15),
    stops=st.lists(st.text("ab ", min_size=1, max_size=5), min_size=1, max_size=3, unique=True),
    min_tokens=st.integers(0, 4),
    include=st.booleans(),
)
def test_stop_strings_are_found_across_token_borders(
    token_ids: list[int], stops: list[str], min_tokens: int, include: bool
) -> None:
    request, finish = run(
        Stopping(Letters(), [], 100), token_ids, stop=stops, min_tokens=min_tokens, include_stop_str_in_output=include
    )
    expected = first_stop(token_ids, stops, min_tokens)
    if expected is None:
        assert finish is None
        assert final_text(Letters(), request) == "".join(Letters.pieces[i] for i in token_ids)
    else:
        used, stop, before = expected
        assert finish == Finish("stop", stop)
        assert request.num_output_tokens == used
        assert final_text(Letters(), request) == before + (stop if include else "")


def test_find_stop_takes_the_first_to_be_complete() -> None:
    assert find_stop("abcd", ["abcd", "bc"], 0) == ("bc", 3)
    assert find_stop("abcd", ["bc", "abc"], 0) == ("bc", 3)
    assert find_stop("abc", ["ab"], 2) is None
    assert find_stop("abc", ["bc"], 2) == ("bc", 3)


@pytest.mark.parametrize(("include", "text"), [(False, "a "), (True, "a stop")])
def test_a_stop_string_cuts_the_text_of_a_real_tokenizer(byte_tokenizer: Tokenizer, include: bool, text: str) -> None:
    token_ids = byte_tokenizer.encode(["a stopped"], {"add_special_tokens": False})[0]
    stopping = Stopping(byte_tokenizer, [EOS], 100)
    request, finish = run(stopping, token_ids, stop="stop", include_stop_str_in_output=include)
    assert finish == Finish("stop", "stop")
    assert final_text(byte_tokenizer, request) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "the"),
        ({"stop": ["zz"]}, "the"),
        ({"include_stop_str_in_output": True}, "the"),
        ({"include_stop_str_in_output": True, "skip_special_tokens": False}, "the</s>"),
        ({"skip_special_tokens": False}, "the"),
    ],
)
def test_the_token_that_ended_it_is_not_shown(byte_tokenizer: Tokenizer, fields: dict[str, Any], text: str) -> None:
    token_ids = [*byte_tokenizer.encode(["the"], {"add_special_tokens": False})[0], 1]
    request, finish = run(Stopping(byte_tokenizer, [EOS], 100), token_ids, **fields)
    assert finish == Finish("stop", None)
    assert final_text(byte_tokenizer, request) == text


def test_a_stop_token_that_is_text_is_not_shown(byte_tokenizer: Tokenizer) -> None:
    token_ids = byte_tokenizer.encode(["a b"], {"add_special_tokens": False})[0]
    request, _ = run(Stopping(byte_tokenizer, [EOS], 100), token_ids, stop_token_ids=[token_ids[-1]])
    assert final_text(byte_tokenizer, request) == "a "
    request, _ = run(
        Stopping(byte_tokenizer, [EOS], 100),
        token_ids,
        stop_token_ids=[token_ids[-1]],
        include_stop_str_in_output=True,
    )
    assert final_text(byte_tokenizer, request) == "a b"


def test_a_stop_string_with_a_character_of_several_bytes(byte_tokenizer: Tokenizer) -> None:
    token_ids = byte_tokenizer.encode(["a😀b"], {"add_special_tokens": False})[0]
    request, finish = run(Stopping(byte_tokenizer, [EOS], 100), token_ids, stop="😀")
    assert finish == Finish("stop", "😀") and request.num_output_tokens == 5
    assert final_text(byte_tokenizer, request) == "a"


def test_an_output_cut_inside_a_character_says_so(byte_tokenizer: Tokenizer) -> None:
    token_ids = byte_tokenizer.encode(["a😀"], {"add_special_tokens": False})[0]
    request, finish = run(Stopping(byte_tokenizer, [EOS], 100), token_ids, max_tokens=3, stop="zz")
    assert finish == Finish("length", None)
    assert final_text(byte_tokenizer, request) == "a\ufffd"
