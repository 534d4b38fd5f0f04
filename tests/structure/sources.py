"""What the structure tests look at: the files of the project, and the modules of moelens with their imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "moelens"
COMPILED = {"_cpu", "_cuda"}  # extension modules


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def native_files() -> list[Path]:
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    """moelens/ops/native.py -> ops.native; a package's __init__ has the package's name, moelens' own is ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in python_files("moelens")}


def imported_modules(path: Path) -> set[str]:
    """Names, without the leading "moelens.", of the project's modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import; name the module in full"
            source = node.module or ""
            candidates = [f"{source}.{alias.name}" for alias in node.names if alias.name not in COMPILED]
            names = [name if _inside(name) in modules() else source for name in candidates]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {_inside(name) for name in names if name == "moelens" or name.startswith("moelens.")}
    return found


def _inside(name: str) -> str:
    return name.removeprefix("moelens").removeprefix(".")
