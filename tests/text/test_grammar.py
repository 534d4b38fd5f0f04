"""Forms of texts as grammars: which texts they allow, what is said of those that can't be compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moelens.errors import ValidationError
from moelens.structured_outputs import StructuredOutputsParams
from moelens.text import grammar
from moelens.text.grammar import GrammarCompiler
from moelens.text.tokenizer import Tokenizer

EOS = 1
PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["age"]}


@pytest.fixture(scope="session")
def compiler(byte_tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer, 300, [EOS])  # a model's vocabulary may be larger than its tokenizer's


def completes(compiler: GrammarCompiler, text: str, **form: Any) -> bool:
    constraint = compiler.compile(StructuredOutputsParams(**form)).start()
    constraint.follow(compiler._tokenizer.encode([text], {"add_special_tokens": False})[0])
    return constraint.error is None and constraint.exhausted


def test_json(compiler: GrammarCompiler) -> None:
    for schema in (PERSON, json.dumps(PERSON)):
        assert completes(compiler, '{"name": "Ann", "age": 3}', json=schema)
        assert completes(compiler, '{\n  "age" : -30 }', json=schema)
        assert not completes(compiler, '{"age": "3"}', json=schema)
        assert not completes(compiler, '{"name": "Ann"}', json=schema)
    assert completes(compiler, '{"age":3, "more": [1, {}]}', json=PERSON)
    assert not completes(compiler, '{"age":3, "more": 1}', json=PERSON, disable_additional_properties=True)
    assert completes(compiler, '{"age":3}', json=PERSON, disable_any_whitespace=True)
    assert not completes(compiler, '{"age": 3}', json=PERSON, disable_any_whitespace=True)
    assert completes(compiler, '{"age": 3}', json=PERSON, whitespace_pattern=" ?")
    assert not completes(compiler, '{"age":  3}', json=PERSON, whitespace_pattern=" ?")
    assert completes(compiler, '{"any": ["thing", null]}', json_object=True)
    assert not completes(compiler, "[1]", json_object=True)


def test_closing_a_schema_leaves_what_it_says_itself() -> None:
    inner = {"properties": {"a": {}}, "additionalProperties": True}
    schema = {"$defs": {"one": {"properties": {"b": {}}}}, "anyOf": [inner, {"type": "string"}]}
    closed = grammar._closed(schema)
    assert closed["$defs"]["one"]["additionalProperties"] is False and "additionalProperties" not in closed
    assert closed["anyOf"] == [inner, {"type": "string"}]
    assert "additionalProperties" not in schema["$defs"]["one"], "the caller's own is left alone"


def test_regex_choice_and_grammars(compiler: GrammarCompiler) -> None:
    assert completes(compiler, "2024-05", regex=r"\d{4}-\d{2}")
    assert not completes(compiler, "2024-5", regex=r"\d{4}-\d{2}")
    assert completes(compiler, "3/é\n", regex=r"\d/[é\w]\s")
    for other in ("٣/é\n", "3/ü\n", "3/é\u00a0"):
        assert not completes(compiler, other, regex=r"\d/[é\w]\s"), "its classes are ASCII"
    for text in ('say "no"', "naïve", "🙂\n", "a\\b"):
        assert completes(compiler, text, choice=["yes", 'say "no"', "naïve", "🙂\n", "a\\b"])
        assert not completes(compiler, text[:-1], choice=["yes", 'say "no"', "naïve", "🙂\n", "a\\b"])
    lark = 'start: "(" start ")" | /[a-z]/'
    gbnf = 'root ::= "(" root ")" | [a-z]'
    for text in (lark, gbnf):
        assert completes(compiler, "((x))", grammar=text) and not completes(compiler, "((x)", grammar=text)


def test_a_text_that_may_go_on_is_not_complete(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(StructuredOutputsParams(regex="a+")).start()
    constraint.follow(compiler._tokenizer.encode(["aaa"], {"add_special_tokens": False})[0])
    assert not constraint.exhausted
    constraint.follow([*compiler._tokenizer.encode(["aaa"], {"add_special_tokens": False})[0], EOS])
    assert constraint.exhausted and constraint.error is None


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"json": {"type": "objec"}}, "objec"),
        ({"json": "{"}, "structured_outputs can't be compiled: "),
        ({"json": "[1]"}, "a JSON Schema is an object, not list"),
        ({"json": {"type": "string", "format": "palindrome"}}, "palindrome"),
        ({"regex": "a(b"}, "unclosed group"),
        ({"grammar": "start: unknown_rule"}, "unknown_rule"),
        ({"grammar": "root ::= ("}, "can't be compiled"),
        ({"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "can't be compiled"),
    ],
)
def test_what_cannot_be_compiled_is_said(compiler: GrammarCompiler, form: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        compiler.compile(StructuredOutputsParams(**form))
    assert str(caught.value).startswith("structured_outputs can't be compiled: ") and message in str(caught.value)
    assert caught.value.parameter == "structured_outputs" and "\n" not in str(caught.value)


def test_a_form_is_compiled_once(byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "_KEPT_GRAMMARS", 2)
    compiler = GrammarCompiler(byte_tokenizer, 300, [EOS])
    one = compiler.compile(StructuredOutputsParams(choice=["a"]))
    compiler.compile(StructuredOutputsParams(choice=["b"]))
    assert compiler.compile(StructuredOutputsParams(choice=["a"])) is one
    compiler.compile(StructuredOutputsParams(choice=["c"]))
    assert compiler.compile(StructuredOutputsParams(choice=["a"])) is one, "the one that was used last is kept"


def test_a_tokenizer_that_llguidance_cannot_read() -> None:
    class Slow:
        eos_token_id = None

    with pytest.raises(ValidationError, match="can't be used with this tokenizer"):
        GrammarCompiler(Tokenizer(Slow()), 300, [EOS]).compile(StructuredOutputsParams(regex="a"))


def test_words_of_a_word_tokenizer(word_tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(word_tokenizer, len(word_tokenizer.hf.get_vocab()), [2])
    constraint = compiler.compile(StructuredOutputsParams(regex=" ab b")).start()
    constraint.follow(word_tokenizer.encode(["ab b"], {"add_special_tokens": False})[0])
    assert constraint.error is None and constraint.exhausted
