"""What lines ask for, and what is said of those that can't be run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moelens.jobs.parse import LineParser, line_seed
from moelens.jobs.records import Ask, Fault, Kind, Line
from moelens.sampling_params import SamplingParams

PARSER = LineParser(seed=5, models=("m", "path/to/m"))
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def parse(line: object, parser: LineParser = PARSER, number: int = 7) -> Ask | Fault:
    return parser.parse(Line(number, line if isinstance(line, bytes) else json.dumps(line).encode()))


def request(url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": "x", "method": "POST", "url": url, "body": body}


def ask(line: object, parser: LineParser = PARSER) -> Ask:
    found = parse(line, parser)
    assert isinstance(found, Ask), found
    return found


def test_a_chat_request() -> None:
    body = {
        "model": "path/to/m",
        "messages": MESSAGES,
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "n": 2,
        "stop": ["a"],
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 4,
        "user": "somebody",
        "response_format": {"type": "text"},
        "stream": False,
        "tool_choice": "auto",
        "tools": [{"type": "function"}],
        "chat_template_kwargs": {"thinking": True},
    }
    found = ask(request(CHAT, **body))
    assert (found.number, found.custom_id, found.kind, found.model) == (7, "x", Kind.CHAT, "path/to/m")
    assert found.messages == MESSAGES and found.prompt is None
    assert found.tokenization == {"add_special_tokens": False}, "the template has written them"
    assert found.params == SamplingParams(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=5, n=2, stop=["a"], logprobs=4
    )
    assert found.seed == found.seeded_params().seed == 3
    assert found.chat is not None and found.chat.tools == [{"type": "function"}]
    assert found.chat.template_kwargs == {"thinking": True} and found.chat.add_generation_prompt


def test_a_completion_request() -> None:
    found = ask(request(COMPLETION, prompt="hi", logprobs=2, seed=1, echo=False, best_of=1))
    assert (found.kind, found.model, found.prompt) == (Kind.COMPLETION, "m", "hi")
    assert found.tokenization == {"add_special_tokens": True}
    assert found.seeded_params() == SamplingParams(logprobs=2, seed=1)
    assert ask(request(COMPLETION, prompt=[1, 2])).prompt == [1, 2]
    assert ask(request(COMPLETION, prompt=["one"])).prompt == "one"
    assert ask(request(COMPLETION, prompt=[[1, 2]])).prompt == [1, 2]


def test_plain_lines() -> None:
    found = ask({"prompt": "hi", "temperature": 0, "custom_id": "mine"})
    assert (found.kind, found.custom_id, found.prompt) == (Kind.PLAIN, "mine", "hi")
    assert ask({"prompt": "hi"}).custom_id == "7", "the number of the line"
    assert ask({"prompt_token_ids": [4]}).prompt == [4]
    assert ask({"messages": MESSAGES}).messages == MESSAGES


def test_null_is_a_field_left_out() -> None:
    nothing = dict.fromkeys(("temperature", "stop", "n", "tools", "stream", "suffix", "surprise"))
    assert ask(request(CHAT, messages=MESSAGES, **nothing)).params == ask(request(CHAT, messages=MESSAGES)).params


def test_chats_go_on_to_the_models_length_and_prompts_for_16_tokens() -> None:
    assert ask({"messages": MESSAGES}).params.max_tokens is None
    assert ask({"prompt": "hi"}).params.max_tokens == 16


def test_defaults_are_for_what_a_line_does_not_say() -> None:
    parser = LineParser(defaults={"max_tokens": 99, "temperature": 0.25})
    params = ask({"messages": MESSAGES, "temperature": 0.75}, parser).params
    assert (params.max_tokens, params.temperature) == (99, 0.75)


def test_a_lines_seed_is_its_own() -> None:
    def seed(line: object, parser: LineParser = PARSER, number: int = 7) -> int | None:
        found = parse(line, parser, number)
        assert isinstance(found, Ask)
        assert found.params.seed is None, "it is shared with other lines"
        return found.seed

    plain, named = {"prompt": "hi"}, {"prompt": "hi", "custom_id": "a"}
    assert seed(named) == seed(named, number=99) == line_seed(5, "a")
    assert seed(plain) != seed(plain, number=8)
    assert seed(named, LineParser(seed=6)) != seed(named)
    assert seed({**named, "seed": 12}) == 12
    assert all(0 <= line_seed(0, str(i)) < 1 << 63 for i in range(100))


@pytest.mark.parametrize(
    ("line", "parameter", "message"),
    [
        (b"not json", None, "Line 7 is not valid JSON: Expecting value"),
        (b'{"prompt": "a", "prompt": "b"}', None, "the field 'prompt' is given twice"),
        (b"[1, 2]", None, "Line 7 must be a JSON object, got [1, 2]."),
        (b'{"prompt": "\xff"}', None, "Line 7 is not UTF-8: byte 12 is 0xff."),
        (b"[" * 100_000, None, "Line 7 is nested too deeply."),
        (
            {"prompt": "a", "tempurature": 1},
            "tempurature",
            "'tempurature'; did you mean 'temperature'?",
        ),
        ({"prompt": "a", "zzz": 1}, "zzz", "There is no field 'zzz'."),
        ({"prompt": "a", "temperature": -1}, "temperature", "temperature must be non-negative, got -1."),
        ({"prompt": "a", "n": "two"}, "n", "n must be an int"),
        ({"prompt": "a", "messages": MESSAGES}, "prompt", "there is 'prompt' and 'messages'"),
        ({"custom_id": "a"}, "prompt", "there is none of them"),
        ({"prompt": 5}, "prompt", "prompt must be a text or a list of token ids, got 5."),
        ({"prompt": [1, "a"]}, "prompt", "A prompt's token ids must be whole numbers."),
        ({"prompt": [1, True]}, "prompt", "A prompt's token ids must be whole numbers."),
        ({"prompt": "a", "tools": []}, "tools", "tools needs 'messages'"),
        ({"prompt": "a", "custom_id": 4}, "custom_id", "custom_id must be a text, got 4."),
        ({"prompt": "a", "guided_json": {}}, "guided_json", "use structured_outputs={'json': …}"),
        ({"messages": "hi"}, "messages", "messages must be a list of messages, got 'hi'."),
        ({"messages": MESSAGES, "tools": "hammer"}, "tools", "tools must be a list of objects"),
        ({"messages": MESSAGES, "chat_template": 1}, "chat_template", "chat_template must be a text"),
        ({"messages": MESSAGES, "chat_template_kwargs": []}, "chat_template_kwargs", "must be an object"),
        ({"messages": MESSAGES, "add_generation_prompt": 1}, "add_generation_prompt", "must be true or false, got 1"),
        (
            {"messages": MESSAGES, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
            "exclude each other",
        ),
        ({"url": CHAT, "body": {}}, "custom_id", "custom_id is missing"),
        (request("/v1/embeddings", input="a"), "url", "url='/v1/embeddings' is not supported: use '/v1/chat"),
        ({**request(CHAT, messages=MESSAGES), "method": "GET"}, "method", "method must be 'POST', got 'GET'."),
        ({**request(CHAT, messages=MESSAGES), "extra": 1}, "extra", "There is no field 'extra' beside 'custom_id'"),
        ({"custom_id": "x", "url": CHAT, "body": "hi"}, "body", "body must be an object, got 'hi'."),
        (
            request(CHAT, messages=MESSAGES, model="gpt-9"),
            "model",
            "The model 'gpt-9' does not exist: this job",
        ),
        (request(CHAT, messages=MESSAGES, stream=True), "stream", "stream=True is not supported: results are written"),
        (request(CHAT, messages=MESSAGES, logprobs=2), "logprobs", "logprobs must be true or false, got 2"),
        (request(CHAT, messages=MESSAGES, top_logprobs=2), "top_logprobs", "top_logprobs=2 needs logprobs=true."),
        (request(CHAT, messages=MESSAGES, logprobs=True, top_logprobs=-1), "top_logprobs", "whole number"),
        (
            request(CHAT, messages=MESSAGES, max_tokens=1, max_completion_tokens=2),
            "max_completion_tokens",
            "mean the same",
        ),
        (
            request(CHAT, messages=MESSAGES, response_format={"type": "xml"}),
            "response_format",
            "response_format={'type': 'xml'} is not supported: its type is 'text', 'json_object' or 'json_schema'",
        ),
        (
            request(CHAT, messages=MESSAGES, response_format={"type": "json_schema", "json_schema": {"name": "x"}}),
            "response_format",
            "needs {'json_schema': {'schema': {…}}}, got {'name': 'x'}",
        ),
        (
            request(CHAT, messages=MESSAGES, response_format={"type": "json_object"}, structured_outputs={"json": {}}),
            "response_format",
            "response_format and structured_outputs mean the same",
        ),
        (
            {"prompt": "a", "structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs",
            "You can only use one kind of structured outputs constraint",
        ),
        (request(CHAT, messages=MESSAGES, tool_choice="required"), "tool_choice", "can't be forced"),
        (request(CHAT, messages=MESSAGES, prompt="a"), "prompt", "There is no field 'prompt'"),
        (request(COMPLETION, prompt=["a", "b"]), "prompt", "prompt has 2 prompts: write a line for each."),
        (request(COMPLETION, prompt="a", echo=True), "echo", "echo=True is not supported: the prompt is in the input"),
        (request(COMPLETION), "prompt", "prompt must be a text or a list of token ids, got None."),
    ],
    ids=lambda value: None if isinstance(value, (dict, bytes)) else str(value)[:30],
)
def test_what_is_said_of_a_line_that_cannot_be_run(line: object, parameter: str | None, message: str) -> None:
    found = parse(line)
    assert isinstance(found, Fault)
    assert message in found.message
    assert found.parameter == parameter
    assert (found.number, found.code) == (7, 400)


def test_the_custom_id_of_a_faulty_line_is_kept_where_it_can_be_read() -> None:
    assert parse({"prompt": "a", "custom_id": "c", "n": 0}).custom_id == "c"
    assert parse(b"{").custom_id is None
