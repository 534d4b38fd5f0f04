"""What every file keeps: a first line that says what it is for, a size, honest names, no hidden input or output."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from sources import ROOT, native_files, parse, python_files, relative

MAX_LINES = 400
MAX_FUNCTION_LINES = 60
# A growing file is a question; an answer goes here: path -> why it stays whole.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS = {"moelens/llm.py:__init__": "its arguments are those of vLLM, one a line"}

# Words that say nothing of what a thing is.
EMPTY_WORDS = {
    "base",
    "manager",
    "handler",
    "helper",
    "helpers",
    "impl",
    "wrapper",
    "utils",
    "util",
    "common",
    "misc",
    "core",
}

# Where the environment is read, and the one variable that may be; a document must say what it does.
ENVIRONMENT_READERS = {"moelens/ops/native.py": "MOELENS_CPU_ISA"}

PYTHON = [*python_files("moelens", "tests", "examples", "bench"), ROOT / "setup.py"]
PACKAGE = python_files("moelens")
NATIVE = native_files()
SOURCES = [*PACKAGE, *NATIVE]


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_a_python_file_begins_by_saying_what_it_is_for(path: Path) -> None:
    first = parse(path).body[0]
    text = ast.get_docstring(parse(path), clean=False)
    assert text is not None and first.lineno == 1, "the first line is not a docstring"
    assert text.splitlines()[0].strip(), "the docstring's first line is empty"


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_a_native_file_begins_by_saying_what_it_is_for(path: Path) -> None:
    assert re.match(r"(// |/\*)\S*.*\w", path.read_text(encoding="utf-8")), "the first line is not a comment"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES or relative(path) in LONG_FILES, f"{lines} lines; divide it, or say why not in LONG_FILES"


@pytest.mark.parametrize("path", PACKAGE, ids=relative)
def test_functions_stay_small(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            name = f"{relative(path)}:{node.name}"
            assert lines <= MAX_FUNCTION_LINES or name in LONG_FUNCTIONS, f"{name} has {lines} lines"


def test_exceptions_from_size_are_still_needed() -> None:
    for name in LONG_FILES:
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) > MAX_LINES, f"{name} is short enough now"


def words(name: str) -> set[str]:
    """The lower-case words of a CamelCase or snake_case name."""
    return {word.lower() for part in name.split("_") for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)}


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE], ids=relative)
def test_names_say_something(path: Path) -> None:
    names = [part.split(".")[0] for part in path.relative_to(ROOT).parts]
    if path.suffix == ".py":
        definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        names += [node.name for node in ast.walk(parse(path)) if isinstance(node, definitions)]
        names = [name for name in names if not name.startswith("test_")]  # a test's name is a sentence
    else:
        names += re.findall(r"\b(?:class|struct|enum class)\s+(\w+)", path.read_text(encoding="utf-8"))
    empty = {name for name in names if words(name) & EMPTY_WORDS}
    assert not empty, f"names that say nothing: {sorted(empty)}"


@pytest.mark.parametrize("path", PACKAGE, ids=relative)
def test_the_library_does_not_print(path: Path) -> None:
    if relative(path) == "moelens/bench/__main__.py":
        return  # a command's output
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_environment_is_read_in_one_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    reads = re.findall(r"\b(?:os\.environ|os\.getenv|environb?\b|getenv)\b", text)
    assert not reads or relative(path) in ENVIRONMENT_READERS, f"reads the environment: {reads}"


def test_the_variables_that_are_read_are_documented() -> None:
    documents = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    for path, variable in ENVIRONMENT_READERS.items():
        names = {
            node.value
            for node in ast.walk(parse(ROOT / path))
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"[A-Z]+(_[A-Z]+)+", node.value)
        }
        assert names == {variable}, f"{path} seems to read {names}"
        assert variable in documents
