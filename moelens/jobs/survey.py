"""The first pass over the input: how many lines there are, which can't be run, and which repeat a custom_id."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moelens.jobs.parse import LineParser
from moelens.jobs.records import Ask, Fault
from moelens.jobs.sources import Source

SHOWN_FAULTS = 10


@dataclass
class Survey:
    """What the first pass found.

    `digest` identifies the file. `repeated` has the lines whose custom_id an earlier line has, and that line.
    `faults` are the first of the `faulty` lines that can't be run, `most_faults` of them (None: all).
    """

    digest: Mapping[str, Any]
    lines: int = 0
    faulty: int = 0
    faults: list[Fault] = field(default_factory=list)
    most_faults: int | None = SHOWN_FAULTS
    repeated: dict[int, int] = field(default_factory=dict)

    def check(self, asked: Ask | Fault) -> Ask | Fault:
        """What was parsed, or the fault that its custom_id is another line's."""
        first = self.repeated.get(asked.number)
        if first is None or isinstance(asked, Fault):
            return asked
        message = f"custom_id {asked.custom_id!r} is given twice: line {first} has it already."
        return Fault(asked.number, asked.custom_id, message, "custom_id")

    def _note(self, fault: Fault) -> None:
        self.faulty += 1
        if self.most_faults is None or len(self.faults) < self.most_faults:
            self.faults.append(fault)


def survey(source: Source, parser: LineParser, most_faults: int | None = SHOWN_FAULTS) -> Survey:
    """Read the input once. Of a line no more is kept than the hash of its custom_id, 8 bytes."""
    found = Survey(source.digest(), most_faults=most_faults)
    hashes = array("q")
    for line in source.lines():
        asked = parser.parse(line)
        found.lines += 1
        if isinstance(asked, Fault):
            found._note(asked)
        if asked.custom_id is not None:
            hashes.append(hash(asked.custom_id))
    suspects = _repeated(hashes)
    del hashes
    if suspects:
        _find_repeated(source, parser, suspects, found)
    return found


def _repeated(hashes: array[int]) -> set[int]:
    import numpy as np

    values = np.sort(np.frombuffer(hashes, dtype=np.int64)) if hashes else np.empty(0, np.int64)
    return set(values[1:][values[1:] == values[:-1]].tolist())


def _find_repeated(source: Source, parser: LineParser, suspects: set[int], found: Survey) -> None:
    """Look at the lines whose hashes are equal again, since unequal texts may have equal hashes."""
    first_line: dict[str, int] = {}
    for line in source.lines():
        asked = parser.parse(line)
        if asked.custom_id is None or hash(asked.custom_id) not in suspects:
            continue
        first = first_line.setdefault(asked.custom_id, line.number)
        if first != line.number and isinstance(asked, Ask):
            found.repeated[line.number] = first
            fault = found.check(asked)
            assert isinstance(fault, Fault)
            found._note(fault)
