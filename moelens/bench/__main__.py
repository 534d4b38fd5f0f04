"""The command `python -m moelens.bench`: parse, measure, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from moelens import LLM
from moelens.bench import machine
from moelens.bench.arguments import parse_arguments
from moelens.bench.measure import measure
from moelens.bench.report import to_json, to_text
from moelens.errors import MoelensError


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; an error that is the user's is one line and exit status 1."""
    options = parse_arguments(argv)
    try:
        measurement, hardware, plan = measure(options, LLM)
    except MoelensError as error:
        sys.exit(f"moelens.bench: {type(error).__name__}: {error}")
    versions = machine.versions()
    print(to_text(measurement, hardware, versions))
    if options.output_json is not None:
        report = to_json(measurement, hardware, versions, options, plan)
        options.output_json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
