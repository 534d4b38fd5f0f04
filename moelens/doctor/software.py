"""Python, the packages that matter, and the compiled modules with how they were built."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from moelens.doctor.finding import Finding, size

_NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "huggingface-hub", "llguidance", "tqdm")
_OPTIONAL = {"pyarrow": "Parquet files: pip install 'moelens[parquet]'"}
_MODULES = ("moelens._cpu", "moelens._cuda")


def software_findings() -> Iterator[Finding]:
    """Versions, and what is missing."""
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("Python", platform.python_version())
    yield Finding("moelens", _version("moelens") or "not installed (run from its folder)")
    for name in _NEEDED:
        version = _version(name)
        if version is None:
            yield Finding(name, "missing", f"{name} is not installed", f"pip install {name}")
        else:
            yield Finding(name, version)
    for name, purpose in _OPTIONAL.items():
        yield Finding(name, _version(name) or f"not installed; it is for {purpose}")


def module_findings() -> Iterator[Finding]:
    """Each extension module: where it is, when and by which compiler it was built."""
    for name in _MODULES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            yield module_finding(name, Path(spec.origin))
        elif name == "moelens._cpu":
            yield Finding(name, "missing", "the kernels are not built", "pip install -e . with a C++17 compiler")
        else:
            yield Finding(name, "not built: there is no device code on this machine")


def module_finding(name: str, path: Path) -> Finding:
    """What a compiled module's file tells of its making."""
    content = path.read_bytes()
    compilers = re.findall(rb"(?:GCC: \([^)\x00]*\) [\d.]+|clang version [\d.]+)", content)
    compiler = compilers[-1].decode("ascii", "replace") if compilers else "an unknown compiler"
    built = datetime.datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    value = f"{path}, {size(len(content))}, {built}, {compiler}"
    if b"__asan_init" in content:
        problem = "it is instrumented with AddressSanitizer, which makes it several times slower"
        return Finding(name, value, problem, "build it again without MOELENS_SANITIZE: pip install -e .")
    return Finding(name, value)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
