"""The lines of a result file in the order of the input, with no more in memory than where each begins."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from moelens.jobs.answers import line_number
from moelens.jobs.results import sync_folder


def ordered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with the number of the input line that it answers, by ascending number."""
    numbers, offsets = _index(path)
    with path.open("rb") as file:
        for position in _order(numbers):
            file.seek(offsets[position])
            yield numbers[position], file.readline()


def order_file(path: Path) -> None:
    """Bring the lines of a file into the order of the input; the file is the old or the new one at every moment."""
    numbers, _ = _index(path)
    if all(numbers[i] < numbers[i + 1] for i in range(len(numbers) - 1)):
        return
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            for _, line in ordered_lines(path):
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _index(path: Path) -> tuple[array[int], array[int]]:
    """The number of every line, and the byte at which it begins."""
    numbers, offsets = array("q"), array("q")
    offset = 0
    with path.open("rb") as file:
        for line in file:
            numbers.append(line_number(line))
            offsets.append(offset)
            offset += len(line)
    return numbers, offsets


def _order(numbers: array[int]) -> array[int]:
    import numpy as np

    return array("q", np.argsort(np.frombuffer(numbers, dtype=np.int64), kind="stable").tobytes())
