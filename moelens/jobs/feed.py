"""Keeps a model supplied: takes what lines ask for, and gives back what a step has completed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moelens.errors import MoelensError, ValidationError
from moelens.jobs.records import Ask, Fault
from moelens.llm import LLM
from moelens.outputs import RequestOutput
from moelens.session import Call
from moelens.text.chat import render_conversation
from moelens.text.prompts import Prompt, render_prompts

_PLACE = re.compile(r"(Prompt|Conversation) 0: ")  # where a list of one has its fault


class Feed:
    """A model and the lines that are in it; `samples` counts their unfinished texts."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._session = llm.session
        self._call = Call()
        self._asks: dict[int, Ask] = {}  # by their index in the call
        self.samples = 0
        self.prompt_tokens = 0
        self.output_tokens = 0

    @property
    def asks(self) -> int:
        """How many lines are in the model."""
        return len(self._asks)

    def add(self, ask: Ask) -> Fault | None:
        """Queue what a line asks for; returns what is wrong with it, if anything is."""
        try:
            prompt = self._prompt(ask)
            rendered = render_prompts([prompt], self._session.tokenizer, self._session.limits, ask.tokenization)
            index = self._call.submitted
            self._session.submit_all(self._call, rendered, 1, ask.seeded_params(), None)
        except ValidationError as error:
            return Fault(ask.number, ask.custom_id, _PLACE.sub("", str(error), count=1), error.parameter)
        except MoelensError as error:
            return Fault(ask.number, ask.custom_id, str(error))
        except Exception as error:  # of one line, which must not end the others
            message = f"Unexpected {type(error).__name__}: {error}"
            return Fault(ask.number, ask.custom_id, message, code=500)
        self._asks[index] = ask
        self.samples += ask.params.n
        return None

    def choose_plan(self) -> None:
        """Choose the model's plan by the lines that are in it."""
        self._llm.choose_plan(self._call)

    def step(self) -> Sequence[tuple[Ask, RequestOutput]]:
        """Run one step; returns the lines that it completed."""
        self._session.step(self._call, self)
        done = []
        while self._call.ready:
            output = self._call.ready.popleft()
            ask = self._asks.pop(output.prompt_index)
            self.samples -= ask.params.n
            done.append((ask, output))
        return done

    def advance(self, finished: int, prompt_tokens: int, output_tokens: int) -> None:
        """Count a step's tokens."""
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens

    def close(self) -> None:
        """Drop what is unfinished."""
        self._session.abort(self._call)
        self._asks.clear()
        self.samples = 0

    def _prompt(self, ask: Ask) -> Prompt:
        if ask.messages is None:
            assert ask.prompt is not None
            return ask.prompt
        assert ask.chat is not None
        tokenizer = self._session.tokenizer
        if tokenizer is None:
            raise ValidationError("messages need a tokenizer, and there is none.", parameter="messages")
        return render_conversation(ask.messages, 0, tokenizer, ask.chat)
