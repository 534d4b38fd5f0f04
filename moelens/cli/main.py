"""Which command was asked for."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence

Command = Callable[[Sequence[str]], int]

_USAGE = """\
usage: python -m moelens COMMAND [flags]      (python -m moelens COMMAND --help says which)

commands:
{commands}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    usage = _USAGE.format(commands="".join(f"  {name:12}{line}\n" for name, (line, _) in _COMMANDS.items()))
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(usage)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from moelens import __version__

        sys.stdout.write(f"{__version__}\n")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in _COMMANDS:
        nearest = difflib.get_close_matches(name, _COMMANDS, n=1, cutoff=0.0)[0]
        sys.stderr.write(f"python -m moelens: there is no command {name!r}; the nearest is {nearest!r}\n{usage}")
        return 2
    return _COMMANDS[name][1](rest)


# Each command imports what it needs when it is run: `doctor` has to work where nothing else does.
def _run_batch(argv: Sequence[str]) -> int:
    from moelens.cli.run_batch import run

    return run(argv)


def _doctor(argv: Sequence[str]) -> int:
    from moelens.cli.doctor import run

    return run(argv)


def _plan(argv: Sequence[str]) -> int:
    from moelens.cli.plan import run

    return run(argv)


def _bench(argv: Sequence[str]) -> int:
    from moelens.bench.__main__ import main as bench

    bench(argv)
    return 0


_COMMANDS: dict[str, tuple[str, Command]] = {
    "run-batch": ("run a file of requests into a file of results", _run_batch),
    "doctor": ("say what this machine has, what is wrong with it, and what to do", _doctor),
    "plan": ("say how fast a job will be, what limits it and what would lift the limit", _plan),
    "bench": ("measure throughput on one workload", _bench),
}
