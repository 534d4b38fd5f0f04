"""The table of a comparison: medians over the rounds of a cell, and medians of ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.ceilings import Ceiling
from bench.peers.roofline import Least
from bench.peers.workload import Run, Workload

COLUMNS = (
    "model",
    "workload",
    "peer",
    "tok/s",
    "prefill tok/s",
    "decode tok/s",
    "% of roofline: all, prefill, decode",
    "% of needed work's roofline",
    "moelens is faster by: all, decode",
    "load s",
    "peak RSS MiB",
    "same first token",
)


@dataclass(frozen=True)
class Round:
    """One run of one peer in one round, between two measurements of the ceilings.

    `least` is the roofline of the work that peers do, `needed` that of what the tokens need (see roofline.py).
    """

    run: Run
    least: Least
    needed: Least
    ceiling: Ceiling
    peak_rss_bytes: int
    idle_cores: float  # that the peers which were not running have kept busy


@dataclass(frozen=True)
class Cell:
    """All rounds of one peer on one workload of one model."""

    model: str
    workload: Workload
    about: Mapping[str, Any]
    rounds: Sequence[Round]


def median(cell: Cell, value: Callable[[Round], float]) -> float:
    """Over the rounds."""
    return statistics.median(value(one) for one in cell.rounds)


def ratio(cell: Cell, ours: Cell, value: Callable[[Run], float]) -> float:
    """Median over the rounds of a peer's seconds over ours in the same round."""
    pairs = zip(cell.rounds, ours.rounds, strict=True)
    return statistics.median(value(theirs.run) / value(our.run) for theirs, our in pairs)


def header() -> str:
    return "| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS)


def row(cell: Cell, ours: Cell | None) -> str:
    """One line; without moelens in the run there is nothing to compare with."""
    work = cell.workload
    prompt, decoded = work.requests * work.prompt_tokens, work.requests * (work.output_tokens - 1)
    shares = (
        median(cell, lambda one: one.least.seconds / one.run.seconds),
        median(cell, lambda one: one.least.prefill_seconds / one.run.prefill_seconds),
        median(cell, lambda one: one.least.decode_seconds / one.run.decode_seconds),
    )
    faster, same = "–", "–"
    if ours is not None:
        both = ratio(cell, ours, lambda run: run.seconds), ratio(cell, ours, lambda run: run.decode_seconds)
        faster = ", ".join(f"{one:.2f}" for one in both)
        first = zip(cell.rounds[0].run.first_tokens, ours.rounds[0].run.first_tokens, strict=True)
        same = f"{100 * statistics.mean(a == b for a, b in first):.0f}%"
    cells = (
        cell.model,
        str(work),
        f"{cell.about['name']} {cell.about['version']}",
        f"{median(cell, lambda one: work.tokens / one.run.seconds):.0f}",
        f"{median(cell, lambda one: prompt / one.run.prefill_seconds):.0f}",
        f"{median(cell, lambda one: decoded / one.run.decode_seconds):.0f}",
        ", ".join(f"{share:.0%}" for share in shares),
        f"{median(cell, lambda one: one.needed.seconds / one.run.seconds):.0%}",
        faster,
        f"{cell.about['load_seconds']:.1f}",
        f"{max(one.peak_rss_bytes for one in cell.rounds) / 2**20:.0f}",
        same,
    )
    return "| " + " | ".join(cells) + " |"
