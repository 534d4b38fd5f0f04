"""How errors about checkpoint files are worded: file, tensor, what was expected, what was found, what to do."""

from __future__ import annotations

from pathlib import Path

from moelens.errors import CheckpointError

DOWNLOAD_AGAIN = "download the file again"


def damaged(path: Path, found: str, remedy: str = DOWNLOAD_AGAIN) -> CheckpointError:
    """An error that says what was found in the file `path`, and what to do."""
    return CheckpointError(f"{path} {found}: {remedy}.")


def damaged_tensor(path: Path, name: str, expected: str, found: str, remedy: str = DOWNLOAD_AGAIN) -> CheckpointError:
    """An error about one tensor of the file `path`."""
    return CheckpointError(f"{path}: tensor {quote(name)}: expected {expected}, found {found}: {remedy}.")


def quote(text: str) -> str:
    """`text` from a file that may hold anything: printable and short."""
    return repr(text if len(text) <= 200 else text[:200] + "…")
