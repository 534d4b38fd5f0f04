"""The file that results are appended to: whole lines only, each input line once."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from moelens.errors import JobError
from moelens.jobs.answers import line_number

logger = logging.getLogger(__name__)


class Numbers:
    """A set of line numbers, a bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self.count = 0

    def add(self, number: int) -> None:
        """Put a number in."""
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits) + 4096))
        if not self._bits[byte] & bit:
            self._bits[byte] |= bit
            self.count += 1

    def __contains__(self, number: int) -> bool:
        byte = number >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & 1 << (number & 7))

    def __len__(self) -> int:
        return self.count


@dataclass
class Found:
    """What a result file holds: the lines done, how many of them failed, and what had to be cut away.

    `torn_bytes` were an unfinished line at the end, `damaged_lines` no results, `retried` errors that are tried again.
    """

    done: Numbers = field(default_factory=Numbers)
    failed: int = 0
    torn_bytes: int = 0
    damaged_lines: int = 0
    retried: int = 0


def repair(path: Path, retry_errors: bool = False) -> Found:
    """Read what was written before, and leave only whole results in the file.

    A torn end is cut off; damaged lines elsewhere (a power failure can leave them), repetitions and, if so asked, the
    errors are taken out by writing the file anew beside it.
    """
    found = Found()
    kept_bytes, rewrite = 0, False
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                found.torn_bytes = len(line)
            elif _keep(line, found, retry_errors):
                kept_bytes += len(line)
            else:
                rewrite = True
    if rewrite:
        _rewrite(path, retry_errors)
    elif found.torn_bytes:
        os.truncate(path, kept_bytes)
    return found


def _rewrite(path: Path, retry_errors: bool) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    found = Found()
    try:
        with path.open("rb") as file, unfinished.open("wb") as kept:
            for line in file:
                if line.endswith(b"\n") and _keep(line, found, retry_errors):
                    kept.write(line)
            kept.flush()
            os.fsync(kept.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise write_error(path, error) from error


def _keep(line: bytes, found: Found, retry_errors: bool) -> bool:
    """Whether a whole line is a result, a new one, and not to be tried again; counts it in `found`."""
    try:
        number = line_number(line)
        failed = json.loads(line)["error"] is not None
    except (ValueError, KeyError, TypeError):
        found.damaged_lines += 1
        return False
    if number in found.done:
        found.damaged_lines += 1
        return False
    if failed and retry_errors:
        found.retried += 1
        return False
    found.done.add(number)
    found.failed += failed
    return True


class ResultFile:
    """An open file that lines are appended to; what does not get there whole is not there at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise write_error(path, error) from error
        sync_folder(path.parent)
        self._end = os.lseek(self._file, 0, os.SEEK_END)
        self._unsynced = False

    def append(self, lines: Iterable[bytes]) -> None:
        """Write lines.

        Raises JobError when the disk is full or the file can't be written; nothing of these lines is there then.
        """
        data = b"".join(lines)
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise write_error(self.path, error) from error
        self._end += written
        self._unsynced = self._unsynced or written > 0

    def sync(self) -> None:
        """Have the disk hold what was written."""
        if self._unsynced:
            try:
                os.fsync(self._file)
            except OSError as error:
                raise write_error(self.path, error) from error
            self._unsynced = False

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.sync()
        finally:
            os.close(self._file)


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names that files were given, which a file's own sync leaves out."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> JobError:
    """What the user is told when writing fails."""
    return JobError(
        f"{str(path)!r} can't be written: {error.strerror}. Every result up to here is kept; make room (or the file "
        "writable) and repeat the command to go on."
    )


def guarded(path: Path, write: Callable[[], None]) -> None:
    """Do `write`; its OSError becomes a JobError about `path`."""
    try:
        write()
    except OSError as error:
        raise write_error(path, error) from error
