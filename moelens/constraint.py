"""What may come next in a request's output, by a grammar: a state that follows the tokens that were picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Matcher(Protocol):
    """A grammar and the tokens it was given so far; see `llguidance.LLMatcher`, the one there is."""

    def deep_copy(self) -> Matcher: ...
    def is_stopped(self) -> bool: ...
    def is_error(self) -> bool: ...
    def get_error(self) -> str: ...
    def rollback(self, num_tokens: int) -> bool: ...
    def consume_tokens(self, sampled_tokens: list[int]) -> bool: ...


class Grammar:
    """A compiled grammar, which any number of requests follow."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def start(self) -> Constraint:
        """The state of a request that has no output yet."""
        return Constraint(self._matcher.deep_copy())


class Constraint:
    """How far one request's output has come in its grammar.

    `matcher` has taken in the first `taken` tokens. `completed` says that the grammar allows nothing more and that this
    is why the request ended.
    """

    __slots__ = ("completed", "matcher", "taken")

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.taken = 0
        self.completed = False

    def follow(self, output_token_ids: Sequence[int]) -> None:
        """Bring the matcher to exactly these tokens, whatever a step that was interrupted has made of it."""
        count = len(output_token_ids)
        if self.taken > count:
            self.matcher.rollback(self.taken - count)
        elif self.taken < count:
            self.matcher.consume_tokens(list(output_token_ids[self.taken :]))
        self.taken = count

    @property
    def exhausted(self) -> bool:
        """Whether nothing may follow but the end."""
        return self.matcher.is_stopped()

    @property
    def error(self) -> str | None:
        """What went wrong, such as a grammar too complex to go on with."""
        return self.matcher.get_error() if self.matcher.is_error() else None
