"""The journal beside a result file: what job it is, so that only the same one goes on; and the lock on both."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from moelens.errors import JobError
from moelens.jobs.results import sync_folder, write_error

FORMAT = 1
_MISSING = "nothing"


def journal_path(output: Path) -> Path:
    """Where the journal of a result file lies."""
    return output.with_name(f"{output.name}.journal")


class Journal:
    """A file of events, one JSON object a line, only ever appended to; open, it is locked.

    The event "job" says which job this is; the last one counts. "loaded" adds what was known only after loading, and
    "finished" that every line is done.
    """

    def __init__(self, output: Path) -> None:
        self.path = journal_path(output)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise write_error(self.path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise JobError(
                f"Another process writes {str(output)!r} (it holds the lock of {self.path.name}). Wait until it ends, "
                "or give another output."
            ) from error
        self._events = self._read()

    def latest(self, kind: str) -> Mapping[str, Any] | None:
        """The last event of a kind."""
        return next((event for event in reversed(self._events) if event.get("event") == kind), None)

    @property
    def finished(self) -> bool:
        """Whether the last thing that happened was that the job was done."""
        return bool(self._events) and self._events[-1].get("event") == "finished"

    def append(self, kind: str, **content: Any) -> None:
        """Add an event, and have it on the disk."""
        event = {"event": kind, **content}
        data = json.dumps(event, ensure_ascii=True).encode() + b"\n"
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], end + written)
            os.fsync(self._file)
            if end == 0:
                sync_folder(self.path.parent)
        except OSError as error:
            os.ftruncate(self._file, end)
            raise write_error(self.path, error) from error
        self._events.append(event)

    def clear(self) -> None:
        """Forget everything."""
        os.ftruncate(self._file, 0)
        self._events = []

    def _read(self) -> list[dict[str, Any]]:
        """The events; a torn one at the end is cut off."""
        with open(self.path, "rb") as file:
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.ftruncate(self._file, len(whole))
        events = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    events.append(event)
                    continue
            raise JobError(
                f"{str(self.path)!r} is no journal of a job. If the results may go, use --overwrite after deleting it."
            )
        return events

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two records of a job, a line each: the name, what it was, what it is."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(before.keys() | now.keys()):
            place = f"{name}.{key}" if name else key
            yield from differences(before.get(key, _MISSING), now.get(key, _MISSING), place)
    elif before != now:
        yield f"{name}: {_short(before)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
