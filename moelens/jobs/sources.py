"""The lines of an input file, one after another, however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from moelens.errors import JobError
from moelens.jobs.identity import file_digest
from moelens.jobs.parquet import ParquetRows
from moelens.jobs.records import Line

MAX_LINE_BYTES = 64 << 20  # a longer one is no request but another kind of file
BOM = b"\xef\xbb\xbf"
_SKIPPED_BYTES = 1 << 20  # of a line that is too long, at a time


class Source(Protocol):
    """A file of lines, which may be read several times."""

    @property
    def path(self) -> Path: ...

    def lines(self) -> Iterator[Line]:
        """All lines that are not empty."""

    def digest(self) -> Mapping[str, Any]:
        """What tells this file from another: its size and a hash of its content."""


@dataclass(frozen=True)
class JsonLines:
    """A file of JSON objects, one a line."""

    path: Path

    def lines(self) -> Iterator[Line]:
        """Lines are counted from 1 with the empty ones, as editors do."""
        number, offset = 0, 0
        with self.path.open("rb") as file:
            while content := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                offset += len(content)
                if len(content) > MAX_LINE_BYTES:
                    offset += _skip_line(file)
                    message = f"is longer than {MAX_LINE_BYTES >> 20} MiB; is this a file of one JSON object a line?"
                    yield Line(number, ValueError(message), offset)
                    continue
                content = content.removeprefix(BOM) if number == 1 else content
                if not content.isspace():
                    yield Line(number, content, offset)

    def digest(self) -> Mapping[str, Any]:
        """Size and SHA-256."""
        return file_digest(self.path)


def open_source(path: Path) -> Source:
    """The lines of a file of JSON lines, or the rows of a Parquet file.

    Raises JobError when it can't be read.
    """
    if str(path).startswith(("http:/", "https:/")):
        raise JobError(f"input {str(path)!r} is an address: download it and give the file.")
    try:
        with path.open("rb") as file:
            if not file.seekable():
                raise JobError(f"input {str(path)!r} is a pipe, which can't be read again to resume: give a file.")
    except OSError as error:
        raise JobError(f"input {str(path)!r} can't be read: {error.strerror}. Check the path.") from error
    if path.suffix == ".parquet":
        return ParquetRows(path)
    return JsonLines(path)


def _skip_line(file: BinaryIO) -> int:
    """Read on to the next line; returns the bytes that this took."""
    skipped = 0
    while chunk := file.readline(_SKIPPED_BYTES):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped
