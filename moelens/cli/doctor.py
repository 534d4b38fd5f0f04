"""`python -m moelens doctor`: what this machine has, what is wrong with it, and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from moelens.cli.parser import Parser
from moelens.doctor.checkup import examine, problems, to_json, to_text


def run(argv: Sequence[str]) -> int:
    """Run the command; the exit status is 1 when there are problems."""
    parser = Parser(
        prog="python -m moelens doctor",
        description="Say what this machine has, what is wrong with it, and what to do. Exit status 1: problems found.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    found = parser.parse_args(argv)
    sections = examine()
    sys.stdout.write(json.dumps(to_json(sections), indent=2) + "\n" if found.json else to_text(sections))
    return 1 if problems(sections) else 0
