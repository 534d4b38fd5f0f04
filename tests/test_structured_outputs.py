"""StructuredOutputsParams: exactly one kind, of the right type."""

from __future__ import annotations

from typing import Any

import pytest

from moelens import SamplingParams, StructuredOutputsParams, ValidationError


@pytest.mark.parametrize(
    "fields",
    [
        {"json": {"type": "object"}},
        {"json": '{"type": "object"}', "whitespace_pattern": " ?"},
        {"json_object": True, "disable_any_whitespace": True, "regex": None},
        {"regex": "a+"},
        {"choice": ["a", "b"]},
        {"grammar": 'start: "a"', "json_object": False},
    ],
)
def test_one_kind_is_taken_as_fields_or_object(fields: dict[str, Any]) -> None:
    expected = StructuredOutputsParams(**fields)
    assert SamplingParams(structured_outputs=fields).structured_outputs == expected
    params = SamplingParams(structured_outputs=expected)
    assert params.clone().structured_outputs is expected
    assert repr(expected) in repr(params), "params of one repr are taken for the same"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "You must use one kind of structured outputs constraint but none are specified"),
        ({"json_object": False}, "none are specified"),
        ({"json": {}, "regex": "a"}, "You can only use one kind of structured outputs constraint but multiple are"),
        ({"structural_tag": "{}"}, "structural_tag is not supported by moelens"),
        ({"schema": {}}, "structured_outputs has no field 'schema'; it has json, regex"),
        ({"regex": 3}, "regex must be a text, got int"),
        ({"json": 3}, "json must be a JSON Schema, as text or dict, got int"),
        ({"choice": "yes"}, "choice must be a list of texts that are not empty, got 'yes'"),
        ({"choice": []}, "choice must be a list of texts that are not empty, got []"),
        ({"choice": ["yes", ""]}, "choice must be a list of texts"),
        ({"choice": ["yes", 1]}, "choice must be a list of texts"),
        ({"json_object": "yes"}, "json_object must be True or False, got 'yes'"),
        ({"regex": "a", "disable_any_whitespace": True}, "are for JSON only"),
        ({"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "}, "whitespace_pattern is for JSON"),
        ("json", "structured_outputs must be StructuredOutputsParams or their fields, got str"),
    ],
)
def test_others_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingParams(structured_outputs=fields)
    assert message in str(caught.value) and caught.value.parameter == "structured_outputs"
