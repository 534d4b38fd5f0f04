"""What tells one input, one model, one set of versions from another, without reading all of a model's weights."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moelens.errors import JobError

_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 100 << 20
_CONTENT_HASH = re.compile(r"[0-9a-f]{64}")  # how the hub's cache names a large file: by its SHA-256
_VERSIONED = ("torch", "transformers", "tokenizers")  # of others' packages, those that words or sums go through

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
WEIGHTS = ("*.safetensors",)


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


def weight_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What tells each file of weights from another: the hash in its name, or size, time of change and header's hash."""
    return {path.name: _weight_file(path) for path in _matching(folder, WEIGHTS)}


def versions() -> dict[str, str]:
    """The versions of moelens and of what tokens and sums pass through."""
    return {name: importlib.metadata.version(name) for name in ("moelens", *_VERSIONED)}


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    names = sorted(os.listdir(folder))
    found = [folder / name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    return [path for path in found if path.is_file()]


def _weight_file(path: Path) -> dict[str, Any]:
    try:
        stored = path.resolve(strict=True)
        if stored != path and _CONTENT_HASH.fullmatch(stored.name):
            return {"sha256": stored.name}
        stat = stored.stat()
        with stored.open("rb") as file:
            length = file.read(8)
            header = file.read(min(int.from_bytes(length, "little"), _MAX_HEADER_BYTES))
    except OSError as error:
        raise JobError(f"{str(path)!r} can't be read: {error.strerror}. Restore it to go on.") from error
    return {
        "bytes": stat.st_size,
        "changed_ns": stat.st_mtime_ns,
        "header_sha256": hashlib.sha256(length + header).hexdigest(),
    }
