"""A line of input to what it asks for: OpenAI's batch lines and plain ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moelens.errors import MoelensError, ValidationError
from moelens.jobs.fields import CHAT_FIELDS, check_fields, read_sampling
from moelens.jobs.records import Ask, Fault, Kind, Line, LineError
from moelens.sampling_params import SamplingParams
from moelens.text.chat import ChatOptions

_URLS = {Kind.CHAT.value: Kind.CHAT, Kind.COMPLETION.value: Kind.COMPLETION}
_ENVELOPE = ("custom_id", "method", "url", "body")
_SHOWN_CHARACTERS = 80
_KEPT_PARAMS = 256  # most files ask for a few kinds of sampling, and checking costs more than all the rest of a line


@dataclass(frozen=True)
class LineParser:
    """Parses lines of one job.

    `defaults` are fields of SamplingParams for the lines that don't give them; `models` are the names that a body's
    `model` may have; `chat_template` renders the conversations that bring none. A line's seed is made from the job's
    `seed` and the line's custom_id, never from when it runs.
    """

    seed: int = 0
    models: Sequence[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    _checked: dict[str, SamplingParams] = field(default_factory=dict, init=False, repr=False, compare=False)

    def parse(self, line: Line) -> Ask | Fault:
        """What the line asks for, or what is wrong with it."""
        custom_id: str | None = None
        try:
            fields = read_json(line)
            custom_id = _custom_id(fields, line.number)
            if _is_request(fields):
                return self._request(fields, line.number, custom_id)
            return self._plain(fields, line.number, custom_id)
        except (LineError, ValidationError) as error:
            return Fault(line.number, custom_id, str(error), error.parameter)
        except (MoelensError, TypeError) as error:
            return Fault(line.number, custom_id, str(error))

    def _request(self, envelope: Mapping[str, Any], number: int, custom_id: str) -> Ask:
        for name in envelope:
            if name not in _ENVELOPE:
                raise LineError(f"There is no field {name!r} beside {', '.join(map(repr, _ENVELOPE))}.", name)
        if envelope.get("method", "POST") != "POST":
            raise LineError(f"method must be 'POST', got {_shown(envelope['method'])}.", "method")
        url, body = envelope.get("url"), envelope.get("body")
        if not isinstance(url, str) or url not in _URLS:
            raise LineError(f"url={_shown(url)} is not supported: use {' or '.join(map(repr, _URLS))}.", "url")
        if not isinstance(body, Mapping):
            raise LineError(f"body must be an object, got {_shown(body)}.", "body")
        kind = _URLS[url]
        check_fields(body, kind)
        model = body.get("model")
        if model is not None and model not in self.models:
            raise LineError(
                f"The model {_shown(model)} does not exist: this job runs {' or '.join(map(repr, self.models))}. "
                "Change or leave out 'model', or add the name with --served-model-name.",
                "model",
            )
        model = self.models[0] if model is None and self.models else model
        if kind is Kind.CHAT:
            return self._chat(body, number, custom_id, kind, model)
        return self._prompt(body, number, custom_id, kind, model, _single_prompt(body.get("prompt")))

    def _plain(self, fields: Mapping[str, Any], number: int, custom_id: str) -> Ask:
        check_fields(fields, Kind.PLAIN)
        given = [name for name in ("prompt", "prompt_token_ids", "messages") if fields.get(name) is not None]
        if len(given) != 1:
            found = " and ".join(map(repr, given)) or "none of them"
            raise LineError(f"Give one of 'prompt', 'prompt_token_ids' and 'messages'; there is {found}.", "prompt")
        if given == ["messages"]:
            return self._chat(fields, number, custom_id, Kind.PLAIN, None)
        return self._prompt(fields, number, custom_id, Kind.PLAIN, None, fields[given[0]])

    def _prompt(
        self, body: Mapping[str, Any], number: int, custom_id: str, kind: Kind, model: str | None, prompt: Any
    ) -> Ask:
        for name in sorted(CHAT_FIELDS - {"messages"}):
            if body.get(name) is not None:
                raise LineError(f"{name} needs 'messages'; a prompt has no chat template.", name)
        if not isinstance(prompt, (str, list)):
            raise LineError(f"prompt must be a text or a list of token ids, got {_shown(prompt)}.", "prompt")
        if isinstance(prompt, list) and not all(type(token_id) is int for token_id in prompt):
            raise LineError("A prompt's token ids must be whole numbers.", "prompt")
        special = _flag(body, "add_special_tokens", True)
        params, seed = self._params(read_sampling(body, kind), custom_id, {})
        return Ask(
            number,
            custom_id,
            kind,
            params,
            seed,
            model=model,
            prompt=prompt,
            tokenization={"add_special_tokens": special},
            return_token_ids=_flag(body, "return_token_ids", False),
        )

    def _chat(self, body: Mapping[str, Any], number: int, custom_id: str, kind: Kind, model: str | None) -> Ask:
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise LineError(f"messages must be a list of messages, got {_shown(messages)}.", "messages")
        for position, message in enumerate(messages):
            _check_message(message, position)
        params, seed = self._params(read_sampling(body, kind), custom_id, {"max_tokens": None})
        return Ask(
            number,
            custom_id,
            kind,
            params,
            seed,
            model=model,
            messages=messages,
            chat=self._chat_options(body),
            tokenization={"add_special_tokens": _flag(body, "add_special_tokens", False)},
            return_token_ids=_flag(body, "return_token_ids", False),
        )

    def _chat_options(self, body: Mapping[str, Any]) -> ChatOptions:
        tools, kwargs, template = body.get("tools"), body.get("chat_template_kwargs"), body.get("chat_template")
        if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
            raise LineError(f"tools must be a list of objects, got {_shown(tools)}.", "tools")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise LineError(f"chat_template_kwargs must be an object, got {_shown(kwargs)}.", "chat_template_kwargs")
        if template is not None and not isinstance(template, str):
            raise LineError(f"chat_template must be a text, got {_shown(template)}.", "chat_template")
        continued = _flag(body, "continue_final_message", False)
        generation = _flag(body, "add_generation_prompt", not continued)
        if continued and generation:
            raise LineError(
                "continue_final_message and add_generation_prompt exclude each other: set one of them to false.",
                "continue_final_message",
            )
        return ChatOptions(
            chat_template=self.chat_template if template is None else template,
            add_generation_prompt=generation,
            continue_final_message=continued,
            tools=tools or None,
            template_kwargs=kwargs,
        )

    def _params(self, given: dict[str, Any], custom_id: str, fallback: Mapping[str, Any]) -> tuple[SamplingParams, int]:
        """How to sample, and the seed; `fallback` is what this kind of request does where nobody says otherwise."""
        fields = {**fallback, **self.defaults, **given}
        seed = fields.pop("seed", None)
        given_seed = None if seed is None else SamplingParams(seed=seed).seed
        key = repr(fields)
        checked = self._checked.get(key)
        if checked is None:
            checked = SamplingParams(**fields)
            if len(self._checked) == _KEPT_PARAMS:
                self._checked.clear()
            self._checked[key] = checked
        return checked, line_seed(self.seed, custom_id) if given_seed is None else given_seed


def line_seed(job_seed: int, custom_id: str) -> int:
    """The seed (63 bits) of a line that gives none."""
    text = f"{job_seed}\0{custom_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def read_json(line: Line) -> Mapping[str, Any]:
    """The object that a line holds.

    Raises LineError.
    """
    content = line.content
    if isinstance(content, ValueError):
        raise LineError(f"Line {line.number} {content}")
    if isinstance(content, Mapping):
        return content
    try:
        value = json.loads(content.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise LineError(
            f"Line {line.number} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}."
        ) from error
    except RecursionError as error:
        raise LineError(f"Line {line.number} is nested too deeply.") from error
    except ValueError as error:
        raise LineError(f"Line {line.number} is not valid JSON: {error}.") from error
    if not isinstance(value, Mapping):
        raise LineError(f"Line {line.number} must be a JSON object, got {_shown(value)}.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise LineError(f"the field {twice!r} is given twice", twice)
    return found


def _is_request(fields: Mapping[str, Any]) -> bool:
    """Whether a line has the form of OpenAI's batch files."""
    return any(name in fields for name in ("method", "url", "body"))


def _custom_id(fields: Mapping[str, Any], number: int) -> str:
    custom_id = fields.get("custom_id")
    if custom_id is None:
        if _is_request(fields):
            raise LineError("custom_id is missing: give each request a text of its own.", "custom_id")
        return str(number)
    if not isinstance(custom_id, str):
        raise LineError(f"custom_id must be a text, got {_shown(custom_id)}.", "custom_id")
    return custom_id


def _single_prompt(prompt: Any) -> Any:
    """OpenAI's prompt may be a list of prompts; a line is one."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        if len(prompt) > 1:
            raise LineError(f"prompt has {len(prompt)} prompts: write a line for each.", "prompt")
        return prompt[0]
    return prompt


def _check_message(message: Any, position: int) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise LineError(f"messages[{position}] must be an object with a role, got {_shown(message)}.", "messages")
    content = message.get("content")
    if content is not None and not isinstance(content, (str, list)):
        raise LineError(
            f"The content of messages[{position}] must be a text or a list of parts, got {_shown(content)}.", "messages"
        )


def _flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise LineError(f"{name} must be true or false, got {_shown(value)}.", name)
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
