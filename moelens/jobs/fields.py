"""The fields of requests: which there are, what each becomes, and why some are refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from moelens.jobs.records import Kind, LineError

# the names that requests and SamplingParams share
_SAMPLING = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "max_tokens",
        "min_p",
        "min_tokens",
        "n",
        "presence_penalty",
        "prompt_logprobs",
        "repetition_penalty",
        "seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_token_ids",
        "structured_outputs",
        "temperature",
        "thinking_token_budget",
        "top_k",
        "top_p",
    }
)
CHAT_FIELDS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "messages",
        "tools",
    }
)
_BODY = frozenset({"add_special_tokens", "logprobs", "model", "return_token_ids"})

# Every field that is handled, by kind; each has its place in `read_sampling` or in parse.py.
KNOWN: Mapping[Kind, frozenset[str]] = {
    Kind.CHAT: _SAMPLING | CHAT_FIELDS | _BODY | {"max_completion_tokens", "top_logprobs", "response_format"},
    Kind.COMPLETION: _SAMPLING | _BODY | {"prompt", "response_format"},
    Kind.PLAIN: _SAMPLING
    | CHAT_FIELDS
    | {"add_special_tokens", "custom_id", "detokenize", "logprobs", "prompt", "prompt_token_ids", "response_format"}
    | {"return_token_ids"},
}

# They say something about the requester or the service and nothing about the text.
WITHOUT_EFFECT = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"})

# name -> (the values that ask for nothing, why no other is possible)
_REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "audio": ((), "moelens writes text only"),
    "best_of": ((1,), "use n with logprobs and choose by them"),
    "documents": ((), "put them into the messages, or into chat_template_kwargs"),
    "echo": ((False,), "the prompt is in the input file; prompt_logprobs gives its log-probabilities"),
    "function_call": (("auto", "none"), "OpenAI has replaced it by tools"),
    "functions": (([],), "OpenAI has replaced it by tools"),
    "guided_choice": ((), "use structured_outputs={'choice': …}"),
    "guided_grammar": ((), "use structured_outputs={'grammar': …}"),
    "guided_json": ((), "use structured_outputs={'json': …}"),
    "guided_regex": ((), "use structured_outputs={'regex': …}"),
    "length_penalty": ((1.0, 1), "moelens has no beam search; use n with a temperature"),
    "logits_processors": (([],), "use logit_bias, allowed_token_ids or bad_words"),
    "max_new_tokens": ((), "it is called max_tokens here"),
    "modalities": ((["text"],), "moelens writes text only"),
    "parallel_tool_calls": ((True,), "tool calls are not parsed; they are in the text"),
    "prediction": ((), "moelens does not decode speculatively"),
    "priority": ((0,), "lines are served in their order"),
    "reasoning_effort": ((), "pass what the model's template reads in chat_template_kwargs"),
    "return_tokens_as_token_ids": ((False,), "use return_token_ids"),
    "stream": ((False,), "results are written when they are complete"),
    "stream_options": ((), "results are written when they are complete"),
    "suffix": (("",), "moelens only continues text"),
    "tool_choice": (("auto", "none"), "a tool call can't be forced; tools are given to the chat template"),
    "truncate_prompt_tokens": ((), "cut the prompt yourself; a shortened prompt would be a silent loss"),
    "use_beam_search": ((False,), "moelens has no beam search; use n with a temperature"),
    "web_search_options": ((), "moelens has no tools of its own"),
}
_TEXT_FORMAT: Mapping[str, str] = {"type": "text"}


def check_fields(body: Mapping[str, Any], kind: Kind) -> None:
    """Raise LineError for the first field that does not exist for this kind of request, or that asks the impossible."""
    known = KNOWN[kind]
    for name, value in body.items():
        if value is None or name in known or name in WITHOUT_EFFECT:
            continue
        if name in _REFUSED:
            neutral, reason = _REFUSED[name]
            if value in neutral:
                continue
            raise LineError(f"{name}={_short(value)} is not supported: {reason}.", name)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise LineError(f"There is no field {name!r}{hint}", name)


def read_sampling(body: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """The keyword arguments of SamplingParams that the fields of a request come to; those left at null are left out.

    Raises LineError for fields that contradict each other.
    """
    sampling = {name: body[name] for name in _SAMPLING if body.get(name) is not None}
    if body.get("response_format") is not None:
        form = _response_format(body["response_format"])
        if form and "structured_outputs" in sampling:
            raise LineError(
                "response_format and structured_outputs mean the same: give one of them.", "response_format"
            )
        sampling |= form
    if kind is Kind.CHAT:
        return sampling | _chat_limit(body) | _chat_logprobs(body)
    for name in ("logprobs", "detokenize"):
        if body.get(name) is not None:
            sampling[name] = body[name]
    return sampling


def _chat_limit(body: Mapping[str, Any]) -> dict[str, Any]:
    newer, older = body.get("max_completion_tokens"), body.get("max_tokens")
    if newer is None:
        return {}
    if older is not None and older != newer:
        raise LineError(
            f"max_completion_tokens={_short(newer)} and max_tokens={_short(older)} mean the same: give one of them.",
            "max_completion_tokens",
        )
    return {"max_tokens": newer}


def _chat_logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    wanted, most = body.get("logprobs"), body.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise LineError(f"logprobs must be true or false, got {_short(wanted)}; top_logprobs is the count.", "logprobs")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
        raise LineError(f"top_logprobs must be a whole number, 0 or more, got {_short(most)}.", "top_logprobs")
    if not wanted:
        if most:
            raise LineError(f"top_logprobs={most} needs logprobs=true.", "top_logprobs")
        return {}
    return {"logprobs": most or 0}


def _response_format(value: Any) -> dict[str, Any]:
    """OpenAI's response formats as `structured_outputs`; `strict` is always so."""
    if value == _TEXT_FORMAT:
        return {}
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "json_object":
        return {"structured_outputs": {"json_object": True}}
    if kind == "json_schema":
        described = value.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, Mapping):
            raise LineError(
                "response_format of type 'json_schema' needs {'json_schema': {'schema': {…}}}, "
                f"got {_short(described)}.",
                "response_format",
            )
        return {"structured_outputs": {"json": dict(schema)}}
    raise LineError(
        f"response_format={_short(value)} is not supported: its type is 'text', 'json_object' or 'json_schema'.",
        "response_format",
    )


def _short(value: object) -> str:
    """A value as it may stand in a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
