"""What `import moelens` gives, and what it leaves for later."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import moelens
from moelens import errors


def test_all_lists_exactly_what_is_public() -> None:
    public = {
        name
        for name, value in vars(moelens).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert sorted(moelens.__all__) == sorted(public | {"__version__"})


def test_every_error_is_exported() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert defined <= set(moelens.__all__)


def test_the_version_is_the_packages() -> None:
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', pyproject, re.MULTILINE)[1] == moelens.__version__  # type: ignore[index]


def test_importing_leaves_slow_modules_alone() -> None:
    code = "import sys, moelens; print(*sorted({'transformers', 'tokenizers', 'huggingface_hub'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
