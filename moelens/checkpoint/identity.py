"""What tells one checkpoint's weights from another's, without reading all of them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from moelens.checkpoint.faults import damaged

_MAX_HEADER_BYTES = 100 << 20
_CONTENT_HASH = re.compile(r"[0-9a-f]{64}")  # how the hub's cache names a large file: by its SHA-256


def weight_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What tells each file of weights from another: the hash in its name, or size, time of change and header's hash.

    Raises CheckpointError when one can't be read.
    """
    return {path.name: _weight_file(path) for path in sorted(folder.glob("*.safetensors")) if path.is_file()}


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
        raise damaged(path, f"can't be read ({error.strerror})", "restore it to go on") from error
    return {
        "bytes": stat.st_size,
        "changed_ns": stat.st_mtime_ns,
        "header_sha256": hashlib.sha256(length + header).hexdigest(),
    }
