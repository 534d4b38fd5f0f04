"""What the flags of all commands have in common: the nearest for one that does not exist, and kinds of values."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from moelens import sizes
from moelens.arguments import unsupported_reason
from moelens.errors import ConfigError

_SERVER = "moelens has no server"
_REFUSED: Mapping[str, str] = {
    "--host": _SERVER,
    "--port": _SERVER,
    "--tensor-parallel-size": "one process runs the whole model",
    "--trust-remote-code": "code that a checkpoint brings along is never run",
}


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations, and that names the nearest flag for one that it does not have."""

    def __init__(self, *, refused: Mapping[str, str] = MappingProxyType({}), **options: Any) -> None:
        """`refused` says of flags that the command lacks what to do instead, where the nearest would mislead."""
        super().__init__(**{**options, "allow_abbrev": False})
        self._refused = {**_REFUSED, **refused}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown[0])
        return found

    def refuse(self, unknown: str) -> NoReturn:
        """Exit with what to use instead of a flag."""
        flag = unknown.split("=")[0]
        if not flag.startswith("-"):
            self.error(f"{unknown!r} is too much: it belongs to no flag")
        reason = self._refused.get(flag) or unsupported_reason(flag.lstrip("-").replace("-", "_"))
        if reason is not None:
            self.error(f"{flag} is not supported: {reason}")
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.0)[0]
        self.error(f"{flag} is not supported; the nearest supported flag is {nearest} (see --help)")


def positive(text: str) -> int:
    """A whole number, at least 1."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """A whole number, at least 0."""
    return _at_least(0, text)


def parse_bytes(text: str) -> int:
    """A size in bytes, as `moelens.sizes` reads it."""
    try:
        return sizes.parse_bytes(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return value


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return int(text)
