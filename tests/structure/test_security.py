"""What a file of somebody else's could do: nothing in moelens unpickles, evaluates or runs what it reads."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from sources import parse, python_files, relative

UNPICKLING = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
RUNNING = {"eval", "exec", "compile", "__import__"}
LOADING = {("torch", "load"), ("os", "system"), ("os", "popen"), ("yaml", "load")}


@pytest.mark.parametrize("path", python_files("moelens", "examples", "bench"), ids=relative)
def test_nothing_that_is_read_can_run(path: Path) -> None:
    for node in ast.walk(parse(path)):
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        assert not names & UNPICKLING, f"{relative(path)}:{node.lineno} imports what unpickles"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            check_call(node, f"{relative(path)}:{node.lineno}")


def check_call(node: ast.Call, place: str) -> None:
    called = node.func
    if isinstance(called, ast.Name):
        assert called.id not in RUNNING, f"{place} calls {called.id}"
    elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        assert (called.value.id, called.attr) not in LOADING, f"{place} calls {called.value.id}.{called.attr}"
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        assert keyword.arg not in ("trust_remote_code", "shell", "allow_pickle") or value in (False, None), (
            f"{place} sets {keyword.arg}"
        )
