"""Builds the GPU's kernels under emulation and loads them; where MOELENS_CUDA_EMU_MODULE names a build, loads that."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_emulated_kernels() -> ModuleType:
    """The module _cuda_emu of the sources as they are now. It lies apart from the package, which never offers it."""
    named = os.environ.get("MOELENS_CUDA_EMU_MODULE")
    return load(Path(named) if named else build(ROOT, ROOT / "build" / "emulated"))


def build(root: Path, folder: Path, **settings: str) -> Path:
    """The module built from `root` into `folder`; only what changed is compiled."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
    environment = {**os.environ, "MOELENS_CUDA_EMU": "1", **settings}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the emulated kernels can't be built:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    (module,) = (folder / "moelens").glob("_cuda_emu*.so")
    return module


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("moelens._cuda_emu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
