"""Forms of texts to grammars of tokens, by llguidance."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from moelens.constraint import Grammar
from moelens.errors import ValidationError
from moelens.structured_outputs import StructuredOutputsParams
from moelens.text.tokenizer import Tokenizer

_ASCII_CLASSES = "dws"  # what \d, \w and \s stand for is ASCII, as in vLLM; other digits look strange in a text
_KEPT_GRAMMARS = 64  # most files ask for a few forms


class GrammarCompiler:
    """Compiles forms for one tokenizer, whose ids are below `vocab` and of which `eos_token_ids` end a text."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._eos_token_ids = [token_id for token_id in eos_token_ids if token_id < vocab]
        self._tokens: Any = None  # llguidance's own form of the tokenizer, which takes a second to make
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, params: StructuredOutputsParams) -> Grammar:
        """The grammar of a form.

        Raises ValidationError when it can't be: a schema, regex or grammar is wrong, asks for what llguidance doesn't
        have, or is too complex; or the tokenizer is none of the fast ones.
        """
        text = grammar_text(params)
        if text in self._compiled:
            self._compiled.move_to_end(text)
            return self._compiled[text]
        import llguidance

        matcher = llguidance.LLMatcher(self._llguidance_tokens(), text, log_level=0)
        if matcher.is_error():
            raise _refused(matcher.get_error(), params)
        self._compiled[text] = Grammar(matcher)
        if len(self._compiled) > _KEPT_GRAMMARS:
            self._compiled.popitem(last=False)
        return self._compiled[text]

    def _llguidance_tokens(self) -> Any:
        if self._tokens is None:
            import llguidance.hf

            try:
                self._tokens = llguidance.hf.from_tokenizer(
                    self._tokenizer.hf, n_vocab=self._vocab, eos_token=self._eos_token_ids or None
                )
            except Exception as error:  # of Rust, or that the tokenizer is a slow one
                raise ValidationError(
                    f"structured_outputs can't be used with this tokenizer: {error}. Leave it out.",
                    parameter="structured_outputs",
                ) from error
        return self._tokens


def grammar_text(params: StructuredOutputsParams) -> str:
    """The grammar in llguidance's notation.

    Raises ValidationError when it can't be read at all.
    """
    import llguidance

    try:
        if params.is_json:
            return llguidance.LLMatcher.grammar_from_json_schema(_schema(params), overrides=_json_options(params))
        if params.regex is not None:
            inside = llguidance.regex_to_lark(params.regex, _ASCII_CLASSES)
            return llguidance.LLMatcher.grammar_from_lark(f"start: /{inside}/")
        if params.choice is not None:
            return llguidance.grammar_from("choice", json.dumps(params.choice))
        assert params.grammar is not None
        return llguidance.grammar_from("grammar", params.grammar)
    except ValueError as error:
        raise _refused(str(error), params) from error


def _schema(params: StructuredOutputsParams) -> dict[str, Any]:
    if params.json_object:
        return {"type": "object"}
    schema = json.loads(params.json) if isinstance(params.json, str) else params.json
    if not isinstance(schema, dict):
        raise ValueError(f"a JSON Schema is an object, not {type(schema).__name__}")
    return _closed(schema) if params.disable_additional_properties else schema


def _json_options(params: StructuredOutputsParams) -> Any:
    options: dict[str, Any] = {"whitespace_flexible": not params.disable_any_whitespace}
    if params.whitespace_pattern is not None:
        options["whitespace_pattern"] = params.whitespace_pattern
    return options


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema whose objects have the properties that are named and no others."""
    closed = copy.deepcopy(schema)
    left: list[Any] = [closed]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if ("properties" in part or "patternProperties" in part) and "additionalProperties" not in part:
                part["additionalProperties"] = False
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)
    return closed


def _refused(reason: str, params: StructuredOutputsParams) -> ValidationError:
    return ValidationError(
        f"structured_outputs can't be compiled: {' '.join(reason.split())}",
        parameter="structured_outputs",
        value=params,
    )
