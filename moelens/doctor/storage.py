"""Folders that models are kept in, and how much room there is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moelens.doctor.finding import Finding, size

_LEAST_FREE_BYTES = 10 << 30


def storage_findings() -> Iterator[Finding]:
    """The hub's cache, the working folder and the one for temporary files."""
    yield folder_finding("hub cache", hub_cache())
    yield folder_finding("working folder", Path.cwd())
    yield folder_finding("temporary folder", Path(tempfile.gettempdir()))


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return Path.home() / ".cache" / "huggingface" / "hub"
    return Path(constants.HF_HUB_CACHE)


def folder_finding(name: str, folder: Path, free_bytes: int | None = None) -> Finding:
    """Whether a folder, or the one that it would be made in, can be written and has room."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free if free_bytes is None else free_bytes
    value = f"{folder}{'' if existing == folder else ' (not made yet)'}, {size(free)} free"
    if not os.access(existing, os.W_OK):
        return Finding(name, value, f"{existing} can't be written", f"chown or chmod {existing}")
    if free < _LEAST_FREE_BYTES:
        problem = f"less than {size(_LEAST_FREE_BYTES)} is free"
        remedy = "make room, or point HF_HOME (or --download-dir) at another disk"
        return Finding(name, value, problem, remedy)
    return Finding(name, value)
