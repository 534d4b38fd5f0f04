"""Prompts in long lists: texts are tokenised in groups, and order and indices stay right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from moelens.errors import ValidationError
from moelens.text.prompts import TEXTS_AT_ONCE, PromptLimits, list_prompts, render_prompts

if TYPE_CHECKING:
    from moelens.text.tokenizer import Tokenizer

LIMITS = PromptLimits(vocab=300, max_model_len=50)


def mixed(count: int) -> list[Any]:
    return [f"number {i}" if i % 3 else {"prompt_token_ids": [4 + i % 256, 5]} for i in range(count)]


def test_long_lists_keep_their_order(byte_tokenizer: Tokenizer) -> None:
    prompts = mixed(2 * TEXTS_AT_ONCE + 7)
    rendered = list(render_prompts(prompts, byte_tokenizer, LIMITS))
    assert len(rendered) == len(prompts)
    for index, (prompt, one) in enumerate(zip(prompts, rendered, strict=True)):
        if index % 3:
            assert one.text == prompt
            assert one.token_ids == byte_tokenizer.encode([prompt])[0]
        else:
            assert one.text is None and list(one.token_ids) == prompt["prompt_token_ids"]


def test_a_wrong_prompt_far_back_is_named(byte_tokenizer: Tokenizer) -> None:
    prompts = mixed(TEXTS_AT_ONCE + 100)
    prompts[TEXTS_AT_ONCE + 50] = "x" * 60
    with pytest.raises(ValidationError, match=rf"^Prompt {TEXTS_AT_ONCE + 50}: The decoder prompt \(length 61\)"):
        list(render_prompts(prompts, byte_tokenizer, LIMITS))


def test_prompts_are_tokenised_as_they_are_asked_for(byte_tokenizer: Tokenizer) -> None:
    prompts = [*mixed(TEXTS_AT_ONCE), "x" * 60]
    rendered = render_prompts(prompts, byte_tokenizer, LIMITS)
    assert [next(rendered).text for _ in range(3)] == [None, "number 1", "number 2"]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a", ["a"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2]], [[1, 2]]),
        (["a", "b"], ["a", "b"]),
        ({"prompt": "a"}, [{"prompt": "a"}]),
        (("a", "b"), ("a", "b")),
        ([], []),
    ],
)
def test_one_prompt_or_many(prompts: Any, expected: Any) -> None:
    assert list_prompts(prompts) == expected


def test_a_template_writes_the_only_bos(byte_tokenizer: Tokenizer) -> None:
    (one,) = render_prompts(["<s>a"], byte_tokenizer, LIMITS, {"add_special_tokens": False})
    assert list(one.token_ids).count(0) == 1
