"""What form a generated text must have: vLLM's `StructuredOutputsParams`, its names and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moelens.sampling_values import wrong

_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


@dataclass
class StructuredOutputsParams:
    """Exactly one of: `json`, a JSON Schema as text or dict; `regex`; `choice`, a list of texts; `grammar`, in Lark's
    or GBNF's notation; `json_object`, any JSON object.

    For JSON, `disable_any_whitespace` allows no spaces between its parts, `whitespace_pattern` is the regex of those
    allowed, and `disable_additional_properties` forbids properties that the schema doesn't name. Raises ValidationError
    for another number of kinds, or a value of the wrong type.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise self._wrong(
                f"You can only use one kind of structured outputs constraint but multiple are specified: {asdict(self)}"
            )
        if not given:
            raise self._wrong(
                f"You must use one kind of structured outputs constraint but none are specified: {asdict(self)}"
            )
        if self.structural_tag is not None:
            raise self._wrong("structural_tag is not supported by moelens: describe the whole text with grammar.")
        self._check_types()

    @classmethod
    def of(cls, value: object) -> StructuredOutputsParams:
        """The params that a caller or a line of a batch gives: these themselves, or their fields.

        Raises ValidationError.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise wrong(
                f"structured_outputs must be StructuredOutputsParams or their fields, got {type(value).__name__}.",
                "structured_outputs",
                value,
            )
        known = cls.__dataclass_fields__
        for name in value:
            if name not in known:
                raise wrong(
                    f"structured_outputs has no field {name!r}; it has {', '.join(known)}.", "structured_outputs", value
                )
        return cls(**value)

    @property
    def is_json(self) -> bool:
        """Whether the text is JSON."""
        return self.json is not None or bool(self.json_object)

    def _check_types(self) -> None:
        for name in ("regex", "grammar", "whitespace_pattern"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise self._wrong(f"{name} must be a text, got {type(getattr(self, name)).__name__}.")
        if not isinstance(self.json, (str, dict, type(None))):
            raise self._wrong(f"json must be a JSON Schema, as text or dict, got {type(self.json).__name__}.")
        if self.choice is not None:
            listed = isinstance(self.choice, list) and all(isinstance(text, str) for text in self.choice)
            if not listed or not self.choice or not all(self.choice):
                raise self._wrong(f"choice must be a list of texts that are not empty, got {self.choice!r}.")
        for name in ("json_object", "disable_any_whitespace", "disable_additional_properties"):
            if getattr(self, name) not in (None, True, False):
                raise self._wrong(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if not self.is_json and (self.disable_any_whitespace or self.disable_additional_properties):
            raise self._wrong("disable_any_whitespace and disable_additional_properties are for JSON only.")
        if self.whitespace_pattern is not None and (not self.is_json or self.disable_any_whitespace):
            raise self._wrong("whitespace_pattern is for JSON without disable_any_whitespace.")

    def _wrong(self, message: str) -> Exception:
        return wrong(message, "structured_outputs", self)
