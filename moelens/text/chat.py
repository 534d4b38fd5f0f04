"""Conversations to text: one or many, plain contents or parts, the model's template or another."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moelens.errors import ConfigError, ValidationError
from moelens.text.prompts import TextPrompt
from moelens.text.tokenizer import Message, Tokenizer

CONTENT_FORMATS = ("auto", "string", "openai")


@dataclass(frozen=True)
class ChatOptions:
    """How conversations are rendered.

    `content_format` says what the template takes as a message's content: "openai" a list of parts, "string" (and
    "auto") a text, into which several parts are joined by newlines.
    """

    chat_template: str | None = None
    content_format: str = "auto"
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.content_format not in CONTENT_FORMATS:
            raise ConfigError(
                f"chat_template_content_format={self.content_format!r} is not supported. "
                f"Use one of {', '.join(map(repr, CONTENT_FORMATS))}."
            )


def list_conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> Sequence[Sequence[Message]]:
    """One conversation or many, as many."""
    if isinstance(messages, (str, Mapping)):
        raise ValidationError(
            "messages must be a list of {'role': …, 'content': …}, or a list of such lists, "
            f"got {type(messages).__name__}.",
            parameter="messages",
            value=messages,
        )
    if messages and isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return messages  # type: ignore[return-value]


def render_conversation(
    messages: Sequence[Message], index: int, tokenizer: Tokenizer, options: ChatOptions
) -> TextPrompt:
    """The prompt of one conversation; it has its special tokens already.

    Raises ValidationError, which names the conversation by its index.
    """
    try:
        text = tokenizer.render(
            [_message(message, options.content_format) for message in _checked(messages)],
            chat_template=options.chat_template,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            tools=options.tools,
            chat_template_kwargs=options.template_kwargs,
        )
    except ValidationError as error:
        raise ValidationError(
            f"Conversation {index}: {error}", parameter=error.parameter, value=error.value
        ) from error.__cause__
    return {"prompt": text}


def read_chat_template(template: str | os.PathLike[str] | None) -> str | None:
    """A template given as its text or as the path of a file that holds it."""
    if template is None:
        return None
    path = Path(template)
    looks_like_text = any(mark in str(template) for mark in "{}\n")
    if not looks_like_text and path.is_file():
        return path.read_text(encoding="utf-8")
    if not looks_like_text:
        raise ConfigError(f"chat_template={str(template)!r} is neither a file nor a Jinja template.")
    return str(template)


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, (str, Mapping)) or not all(isinstance(message, Mapping) for message in messages):
        raise ValidationError("every message must be a dict with a role and a content.", parameter="messages")
    if not messages:
        raise ValidationError("it has no messages.", parameter="messages", value=messages)
    for position, message in enumerate(messages):
        if "role" not in message:
            raise ValidationError(f"message {position} has no 'role'.", parameter="messages", value=message)
    return messages


def _message(message: Message, content_format: str) -> Message:
    content = message.get("content")
    if isinstance(content, str) and content_format == "openai":
        return {**message, "content": [{"type": "text", "text": content}]}
    if content is None or isinstance(content, str):
        return message
    texts = [_part_text(part) for part in content]
    if content_format == "openai":
        return {**message, "content": [{"type": "text", "text": text} for text in texts]}
    return {**message, "content": "\n".join(texts)}


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ValidationError(
        f"a content part of type {kind!r} is not supported: moelens reads text only.", parameter="messages", value=part
    )
