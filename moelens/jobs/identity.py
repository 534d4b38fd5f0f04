"""What tells one input, one model's small files, one set of versions from another."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_VERSIONED = (
    "torch",
    "transformers",
    "tokenizers",
    "llguidance",
)  # of others' packages, those that words or sums go through

CONFIG = ("config.json", "generation_config.json", "*.safetensors.index.json")
TOKENIZER = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "*.jinja",
    "*.model",
    "*.tiktoken",
)


def file_digest(path: Path, size_bytes: int | None = None) -> dict[str, Any]:
    """Size and SHA-256 of a file, or of its first `size_bytes` bytes."""
    digest = hashlib.sha256()
    left = os.stat(path).st_size if size_bytes is None else size_bytes
    total = 0
    with path.open("rb") as file:
        while left > total and (chunk := file.read(min(_CHUNK_BYTES, left - total))):
            digest.update(chunk)
            total += len(chunk)
    return {"bytes": total, "sha256": digest.hexdigest()}


def small_files(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """SHA-256 of every file of `folder` that matches a pattern, by name."""
    return {path.name: file_digest(path)["sha256"] for path in _matching(folder, patterns)}


def versions() -> dict[str, str]:
    """The versions of moelens and of what tokens and sums pass through."""
    return {name: importlib.metadata.version(name) for name in ("moelens", *_VERSIONED)}


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    names = sorted(os.listdir(folder))
    found = [folder / name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    return [path for path in found if path.is_file()]
