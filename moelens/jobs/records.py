"""What a job speaks of: a line of input, what it asks for, and what is wrong with it."""

from __future__ import annotations

import copy
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moelens.sampling_params import SamplingParams
from moelens.text.chat import ChatOptions
from moelens.text.prompts import Prompt
from moelens.text.tokenizer import Message


class Kind(enum.Enum):
    """What a line is, and so which form its result has."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Line:
    """A line (or row) of input, counted from 1.

    `content` is its bytes, the mapping that it was read as, or why it could not be read. `end_bytes` is where the next
    line of the file begins, 0 where that means nothing.
    """

    number: int
    content: bytes | Mapping[str, Any] | ValueError
    end_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """A line that can be run: a prompt, or a conversation with its options, and how to sample.

    `params` may be shared by many lines and have no seed; `seed` is the line's.
    """

    number: int
    custom_id: str
    kind: Kind
    params: SamplingParams
    seed: int
    model: str | None = None
    prompt: Prompt | None = None
    messages: Sequence[Message] | None = None
    chat: ChatOptions | None = None
    tokenization: Mapping[str, Any] | None = None
    return_token_ids: bool = False

    def seeded_params(self) -> SamplingParams:
        """How to sample, with the line's seed."""
        params = copy.copy(self.params)
        params.seed = self.seed
        return params


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that can't be run, and why; `parameter` names the field, `custom_id` is None where it can't be read."""

    number: int
    custom_id: str | None
    message: str
    parameter: str | None = None
    code: int = 400


class LineError(ValueError):
    """What is wrong with a line, found while it is parsed; it becomes a Fault."""

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter
