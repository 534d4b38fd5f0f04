"""Jobs over an engine without a model: its tokens come from the requests' seeds, so equal requests give equal texts."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from job_folder import Folder

from moelens.options import EngineOptions


@pytest.fixture
def model_folder(byte_tokenizer_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(byte_tokenizer_folder, folder)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """The engines that jobs have made; each new one passes through `prepare`, if it is set."""
    made: list[FakeEngine] = []

    def build_engine(options: EngineOptions, folder: Path, tokenizer: Any, *, show_progress: bool) -> FakeEngine:
        made.append(FakeEngine(tokenizer, max_model_len=options.max_model_len or 64))
        return made[-1]

    assembly = types.ModuleType("moelens.assembly")
    assembly.build_engine = build_engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moelens.assembly", assembly)
    return made


@pytest.fixture
def folder(tmp_path: Path, model_folder: Path, engines: list[FakeEngine]) -> Folder:
    return Folder(tmp_path, model_folder)
