"""The comparison of perplexities: windows of the text, what is counted, and a model that is read both ways."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.perplexity import Reading, cut, read_texts


def test_windows_are_whole_and_spread_over_the_text() -> None:
    ids = list(range(103))
    assert cut(ids, 10, 2) == [list(range(10)), list(range(50, 60))]
    assert cut(ids, 10, 99) == [list(range(begin, begin + 10)) for begin in range(0, 100, 10)]


def test_two_readings_are_compared_place_by_place() -> None:
    first, second = Reading([-1.0, -3.0], [5, 6]), Reading([-1.5, -2.0], [5, 7])
    assert first.perplexity == pytest.approx(math.e**2)
    assert second.same_top(first) == 0.5
    assert second.distance(first) == 0.75


def test_texts_are_plain_files_or_prompts(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("one", encoding="utf-8")
    lines.write_text("\n".join(json.dumps({"prompt": text}) for text in ("two", "three")), encoding="utf-8")
    assert read_texts([plain, lines]) == "one\n\ntwo\n\nthree"
