"""Text as it grows: whatever the tokenizer, it is the text of all tokens, and no character is ever taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.text.detokenize import IncrementalText, output_text

if TYPE_CHECKING:
    from moelens.text.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["byte_tokenizer", "word_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def grow(tokenizer: Tokenizer, prompt: Sequence[int], output: Sequence[int], skip: bool = True) -> tuple[str, str]:
    """The incremental text, and the text of all tokens at once."""
    growing = IncrementalText(tokenizer, prompt, skip)
    text = ""
    for token_id in output:
        text += growing.append(token_id)
        assert growing.text == text
    return text, output_text(tokenizer, prompt, output, skip)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_the_growing_text_is_the_text_of_all_tokens(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    # Where byte tokens stand for unknown characters, one wrong byte spoils all of its run, so that text is taken back.
    usable = [i for i in range(len(tokenizer.hf)) if not tokenizer.hf.convert_ids_to_tokens(i).startswith("<0x")]
    ids = st.sampled_from(usable)
    prompt = data.draw(st.lists(ids, min_size=1, max_size=8))
    output = data.draw(st.lists(ids, max_size=12))
    text, whole = grow(tokenizer, prompt, output, skip)
    # What is missing are characters whose bytes may still come.
    assert whole.startswith(text)
    assert whole == text or whole.endswith("\ufffd")


@settings(max_examples=100, deadline=None)
@given(prompt=st.text("ab. é😀", max_size=5), output=st.text("ab. é😀\n", max_size=12))
def test_real_text_comes_back_whole(tokenizer: Tokenizer, prompt: str, output: str) -> None:
    both = list(tokenizer.encode([prompt + output], {"add_special_tokens": False})[0])
    for cut in range(1, len(both)):
        head = tokenizer.decode(both[:cut], skip_special_tokens=True)
        if "\ufffd" not in head:  # else it was cut inside a character
            text, whole = grow(tokenizer, both[:cut], both[cut:])
            assert text == whole
            assert head + text == prompt + output


def test_a_space_after_the_prompt_is_kept(word_tokenizer: Tokenizer) -> None:
    prompt, output = (word_tokenizer.encode([text], {"add_special_tokens": False})[0] for text in ("ab", "ab b"))
    assert grow(word_tokenizer, prompt, output) == (" ab b", " ab b")


def test_a_character_is_held_back_until_its_last_byte(byte_tokenizer: Tokenizer) -> None:
    token_ids = byte_tokenizer.encode(["é😀"], {"add_special_tokens": False})[0]
    growing = IncrementalText(byte_tokenizer, [0], skip_special_tokens=True)
    assert [growing.append(token_id) for token_id in token_ids] == ["", "é", "", "", "", "😀"]


def test_special_tokens_are_shown_when_asked_for(byte_tokenizer: Tokenizer) -> None:
    output = [*byte_tokenizer.encode(["a"], {"add_special_tokens": False})[0], 3]
    assert grow(byte_tokenizer, [0], output, skip=True) == ("a", "a")
    assert grow(byte_tokenizer, [0], output, skip=False) == ("a<|im_end|>", "a<|im_end|>")


def test_a_long_output_is_decoded_in_small_windows() -> None:
    class Counting:
        longest = 0

        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
            self.longest = max(self.longest, len(token_ids))
            return "x" * len(token_ids)

    counting = Counting()
    growing = IncrementalText(counting, list(range(1000)), skip_special_tokens=True)
    for token_id in range(500):
        growing.append(token_id)
    assert growing.text == "x" * 500
    assert counting.longest <= 10
