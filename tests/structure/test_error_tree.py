"""The errors are one tree, and its drawing shows all of it."""

from __future__ import annotations

import inspect

from moelens import errors


def test_every_error_is_in_the_tree_and_in_its_drawing() -> None:
    defined = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    assert defined
    for name, value in defined.items():
        assert issubclass(value, errors.MoelensError)
        assert name in (errors.__doc__ or "")
