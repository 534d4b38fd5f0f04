"""The names that moelens offers exist, are documented and are complete."""

from __future__ import annotations

import types

import pytest

import moelens
import moelens.errors


def test_all_is_sorted_and_complete() -> None:
    public = {
        name
        for name, value in vars(moelens).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    named = {name for name in moelens.__all__ if not name.startswith("_")}
    assert public == named
    assert list(moelens.__all__) == sorted(moelens.__all__, key=lambda name: (name.startswith("_"), name.lower(), name))


@pytest.mark.parametrize("name", moelens.__all__)
def test_every_name_is_documented(name: str) -> None:
    value = getattr(moelens, name)
    assert name.startswith("_") or value.__doc__


def test_every_error_is_in_the_tree_and_in_its_drawing() -> None:
    classes = {name: value for name, value in vars(moelens.errors).items() if isinstance(value, type)}
    assert classes
    for name, value in classes.items():
        assert issubclass(value, moelens.errors.MoelensError)
        assert name in (moelens.errors.__doc__ or "")
