"""Follows what stages are measured to take against what was expected."""

from __future__ import annotations

from collections.abc import Mapping

from moelens.pipeline.task import Stage

MEMORY = 0.8  # the weight of what was known before against the last step's; a change is followed in about five steps

Pair = tuple[float, float]  # expected and measured seconds, summed over the last steps with falling weights


class Drift:
    """By stage, measured over expected seconds of the last steps."""

    def __init__(self) -> None:
        self._recent: dict[Stage, Pair] = {}

    @property
    def scales(self) -> dict[Stage, float]:
        """What each stage takes over what was expected, lately; stages that were not seen are left out."""
        return {
            stage: measured / expected for stage, (expected, measured) in self._recent.items() if expected and measured
        }

    def observe(self, expected: Mapping[Stage, float], measured: Mapping[Stage, float]) -> None:
        """Take in a step."""
        for stage, own in expected.items():
            if own:
                before = self._recent.get(stage, (0.0, 0.0))
                self._recent[stage] = blend(before, (own, measured.get(stage, 0.0)))


def blend(before: Pair, now: Pair) -> Pair:
    """A pair that remembers."""
    return MEMORY * before[0] + now[0], MEMORY * before[1] + now[1]
