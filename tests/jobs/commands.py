"""Runs `python -m moelens` commands as processes of their own, forked from one that has imported everything.

Reads a JSON object a line: {"argv": [...], "die_in_write": null or the number of a write}. Answers with a line of the
process's id when it was started, and one of its status (as of os.waitpid) when it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Commands:
    """The tests' side: a process that starts others."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(errors)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, argv: list[str], die_in_write: int | None = None) -> int:
        """Start a command; returns its process id. `die_in_write` kills it in the middle of that write of results."""
        assert self._process.stdin is not None
        self._errors.write_text("")
        self._process.stdin.write(json.dumps({"argv": argv, "die_in_write": die_in_write}) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """Wait for the end; returns the exit code, negative for the signal that killed it."""
        return os.waitstatus_to_exitcode(int(self._answer()))

    def run(self, argv: list[str], die_in_write: int | None = None) -> int:
        """Start and wait."""
        self.start(argv, die_in_write)
        return self.wait()

    def said(self) -> str:
        """What the last command wrote to its standard error."""
        return self._errors.read_text(errors="replace")

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the process that starts commands has ended"
        return answer


def serve(errors: str) -> None:
    import transformers  # noqa: F401  all that takes long

    import moelens.assembly  # noqa: F401
    from moelens.cli.main import main

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _redirect(errors)
            if order["die_in_write"] is not None:
                _die_in_write(order["die_in_write"])
            try:
                code = main(order["argv"])
            except SystemExit as exit_:
                code = exit_.code if isinstance(exit_.code, int) else 1
            os._exit(code)
        _say(child)
        _say(os.waitpid(child, 0)[1])


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _redirect(errors: str) -> None:
    for stream, target in ((0, os.devnull), (1, errors), (2, errors)):
        os.dup2(os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)


def _die_in_write(count: int) -> None:
    """Replace the call that writes results by one that stops halfway, for good."""
    from moelens.jobs.results import ResultFile

    write, append = os.pwrite, ResultFile.append
    left = [count]

    def pwrite(file: int, data: bytes, offset: int) -> int:
        write(file, data[: max(1, len(data) * 2 // 3)], offset)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def counted(self: ResultFile, lines: Any) -> None:
        left[0] -= 1
        os.pwrite = pwrite if left[0] <= 0 else write
        append(self, lines)
        os.pwrite = write

    ResultFile.append = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    serve(sys.argv[1])
