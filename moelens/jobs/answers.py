"""From a finished request, or a fault, to the line that is written: the same bytes whenever and wherever it ran."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moelens.jobs.records import Ask, Fault, Kind
from moelens.outputs import CompletionOutput, Logprob, RequestOutput

_ID = b'{"id": "moelens-'
_LOGPROB_FLOOR = -9999.0  # JSON has no -inf; OpenAI writes this


def answer_line(ask: Ask, output: RequestOutput) -> bytes:
    """The line of a finished request; one that ended in an error is an error line."""
    failed = next((one for one in output.outputs if one.finish_reason == "error"), None)
    if failed is not None:
        return fault_line(Fault(ask.number, ask.custom_id, f"Generation failed: {failed.stop_reason}", code=500))
    if ask.kind is Kind.PLAIN:
        content = {
            "custom_id": ask.custom_id,
            "outputs": [_plain_output(one) for one in output.outputs],
            **_plain_prompt(ask, output),
            "usage": _usage(output),
            "error": None,
        }
    else:
        body = _chat_body(ask, output) if ask.kind is Kind.CHAT else _completion_body(ask, output)
        content = {
            "custom_id": ask.custom_id,
            "response": {"status_code": 200, "request_id": f"moelens-batch-{ask.number}", "body": body},
            "error": None,
        }
    return _encode({"id": f"moelens-{ask.number}", **content})


def fault_line(fault: Fault) -> bytes:
    """The line of a request that can't be run."""
    kind = "BadRequestError" if fault.code < 500 else "InternalServerError"
    error = {"message": fault.message, "type": kind, "param": fault.parameter, "code": fault.code}
    return _encode(
        {
            "id": f"moelens-{fault.number}",
            "custom_id": fault.custom_id,
            "response": {"status_code": fault.code, "request_id": f"moelens-batch-{fault.number}", "body": None},
            "error": error,
        }
    )


def line_number(line: bytes) -> int:
    """The number of the input line that a written line answers.

    Raises ValueError when no job has written it.
    """
    if not line.startswith(_ID):
        raise ValueError("it does not begin with an id of a job's line")
    return int(line[len(_ID) : line.index(b'"', len(_ID))])


def _encode(content: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape and UTF-8 can't hold
        return json.dumps(content).encode() + b"\n"


def _usage(output: RequestOutput) -> dict[str, Any]:
    prompt, completion = len(output.prompt_token_ids), sum(len(one.token_ids) for one in output.outputs)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _plain_prompt(ask: Ask, output: RequestOutput) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if ask.return_token_ids:
        extra["prompt_token_ids"] = output.prompt_token_ids
    if output.prompt_logprobs is not None:
        extra["prompt_logprobs"] = [None if one is None else _plain_logprobs(one) for one in output.prompt_logprobs]
    return extra


def _plain_output(one: CompletionOutput) -> dict[str, Any]:
    content: dict[str, Any] = {"text": one.text, "finish_reason": one.finish_reason, "stop_reason": one.stop_reason}
    if one.logprobs is not None:
        content["cumulative_logprob"] = one.cumulative_logprob
        content["logprobs"] = [_plain_logprobs(entry) for entry in one.logprobs]
    return content


def _plain_logprobs(entry: Mapping[int, Logprob]) -> dict[str, Any]:
    """vLLM's form: token id -> its log-probability, rank and text."""
    return {
        str(token_id): {"logprob": _finite(one.logprob), "rank": one.rank, "decoded_token": one.decoded_token}
        for token_id, one in entry.items()
    }


def _chat_body(ask: Ask, output: RequestOutput) -> dict[str, Any]:
    choices = []
    for one in output.outputs:
        choice: dict[str, Any] = {
            "index": one.index,
            "message": {"role": "assistant", "content": one.text},
            "logprobs": None if one.logprobs is None else {"content": _chat_logprobs(one, ask.params.logprobs)},
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
        }
        if ask.return_token_ids:
            choice["token_ids"] = one.token_ids
        choices.append(choice)
    body = _body(f"chatcmpl-{ask.number}", "chat.completion", ask, choices, output)
    if ask.return_token_ids:
        body["prompt_token_ids"] = output.prompt_token_ids
    if output.prompt_logprobs is not None:
        body["prompt_logprobs"] = [None if one is None else _plain_logprobs(one) for one in output.prompt_logprobs]
    return body


def _completion_body(ask: Ask, output: RequestOutput) -> dict[str, Any]:
    choices = []
    for one in output.outputs:
        choice: dict[str, Any] = {
            "index": one.index,
            "text": one.text,
            "logprobs": None if one.logprobs is None else _completion_logprobs(one, ask.params.logprobs),
            "finish_reason": one.finish_reason,
            "stop_reason": one.stop_reason,
        }
        if ask.return_token_ids:
            choice["token_ids"] = one.token_ids
            choice["prompt_token_ids"] = output.prompt_token_ids
        if output.prompt_logprobs is not None:
            choice["prompt_logprobs"] = [
                None if entry is None else _plain_logprobs(entry) for entry in output.prompt_logprobs
            ]
        choices.append(choice)
    return _body(f"cmpl-{ask.number}", "text_completion", ask, choices, output)


def _body(name: str, form: str, ask: Ask, choices: Sequence[Any], output: RequestOutput) -> dict[str, Any]:
    """`created` is 0: the moment would make the line differ from that of another run."""
    return {
        "id": name,
        "object": form,
        "created": 0,
        "model": ask.model,
        "choices": choices,
        "usage": _usage(output),
    }


def _chat_logprobs(one: CompletionOutput, most: int | None) -> list[dict[str, Any]]:
    content = []
    for token_id, entry in zip(one.token_ids, one.logprobs or (), strict=False):
        ranked = sorted(entry.values(), key=lambda logprob: logprob.rank or 0)[: most or 0]
        content.append({**_chat_token(entry[token_id]), "top_logprobs": [_chat_token(other) for other in ranked]})
    return content


def _chat_token(one: Logprob) -> dict[str, Any]:
    token = one.decoded_token or ""
    return {"token": token, "logprob": _finite(one.logprob), "bytes": list(token.encode("utf-8", "replace"))}


def _completion_logprobs(one: CompletionOutput, most: int | None) -> dict[str, Any]:
    tokens, values, tops, offsets = [], [], [], []
    offset = 0
    for token_id, entry in zip(one.token_ids, one.logprobs or (), strict=False):
        token = entry[token_id].decoded_token or ""
        ranked = sorted(entry.values(), key=lambda logprob: logprob.rank or 0)
        shown = ranked if most == -1 else ranked[: most or 0]
        tokens.append(token)
        values.append(_finite(entry[token_id].logprob))
        tops.append({other.decoded_token or "": _finite(other.logprob) for other in shown})
        offsets.append(offset)
        offset += len(token)
    return {"text_offset": offsets, "token_logprobs": values, "tokens": tokens, "top_logprobs": tops}


def _finite(logprob: float) -> float:
    return max(logprob, _LOGPROB_FLOOR)
