"""The documents keep up with the code: their snippets compile, their links and commands exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from sources import PACKAGE, ROOT, relative

from moelens.bench.arguments import parse_arguments
from moelens.models import registry

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_there_are_documents() -> None:
    names = {relative(path) for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/adding_a_model.md"} <= names


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_python_snippets_compile_and_import_what_exists(path: Path) -> None:
    import moelens

    for snippet in snippets(path.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module == "moelens":
                assert {alias.name for alias in node.names} <= set(moelens.__all__)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
        file, anchor = (path.parent / target[0]) if target[0] else path, target[1]
        if target[0].startswith("http"):
            continue
        assert file.exists(), f"{relative(path)} links to {target[0]}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{relative(path)} links to {target[0]}{anchor}; there are {sorted(anchors)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"`((?:moelens|csrc|tests|examples|docs|bench|\.ci)/[\w./-]*)`", path.read_text("utf-8")):
        assert (ROOT / name).exists(), f"{relative(path)} names {name}, which does not exist"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_make_targets_that_are_named_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^ {4}|`)make (?:\S+=\S+ )?([a-z-]+)", text, re.MULTILINE))
    assert named <= targets


def test_the_readmes_bench_command_is_understood() -> None:
    commands = re.findall(r"^ {4}python -m moelens\.bench (.*)$", README, re.MULTILINE)
    assert commands
    for command in commands:
        parse_arguments(shlex.split(command))


def test_the_readme_lists_every_model_family() -> None:
    listed = set(re.findall(r"^\|[^|]*\| `(\w+)` \|", README, re.MULTILINE))
    assert listed == set(registry._FAMILIES)
    for model_type in listed:
        assert (PACKAGE / "models" / f"{model_type}.py").exists(), "a stranger could not guess the file"


def test_the_changelog_knows_the_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert version and latest and version[1] == latest[1]
