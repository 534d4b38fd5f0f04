"""What the doctor finds: a fact, and perhaps a problem with its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """A named fact; `problem` says what is wrong with it and `remedy` what to do, None where nothing is."""

    name: str
    value: str
    problem: str | None = None
    remedy: str | None = None


def read_text(path: Path) -> str:
    """A file's text without the white space around it, or nothing where it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def size(count_bytes: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count_bytes < 1024:
            return f"{count_bytes:.0f} {unit}" if unit == "B" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1024
    return f"{count_bytes:.1f} TiB"
