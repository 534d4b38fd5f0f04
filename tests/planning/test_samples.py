"""Samples from a machine whose memory changes its pace are brought to one pace before they are summed up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelens.cost.workload import StepShape
from moelens.pipeline.task import Stage
from moelens.planning.samples import Sample, at_pace, settle

SLOW, FAST = 3e-11, 1.6e-11  # seconds per byte
SHAPE = StepShape(decode_tokens=4, decode_context=400, logit_rows=4)


def sample(pace: float, seconds: float, touched: float = 5.0) -> Sample:
    return Sample(SHAPE, {Stage.AFTER_ATTENTION: seconds}, 1e-5, pace, touched)


@pytest.mark.parametrize("pace", [SLOW, FAST, (SLOW + FAST) / 2])
def test_what_reads_follows_memory_and_what_computes_does_not(pace: float) -> None:
    paces = [SLOW, FAST, SLOW, SLOW, FAST, SLOW]
    assert at_pace(paces, [1e8 * s for s in paces], pace) == pytest.approx(1e8 * pace)
    assert at_pace(paces, [0.5] * 6, pace) == pytest.approx(0.5)
    assert at_pace(paces, [0.01 + 1e8 * s for s in paces], pace) == pytest.approx(0.01 + 1e8 * pace)


def test_one_that_was_disturbed_changes_nothing() -> None:
    paces = [SLOW, FAST, SLOW, FAST, SLOW, FAST, SLOW]
    seconds = [1e8 * s for s in paces]
    seconds[2] *= 10
    assert at_pace(paces, seconds, FAST) == pytest.approx(1e8 * FAST, rel=1e-6)


def test_without_two_paces_nothing_is_said_of_another() -> None:
    assert at_pace([SLOW] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], FAST) == 3.0


@given(
    st.lists(st.tuples(st.floats(1e-12, 1e-9), st.floats(0.0, 10.0)), min_size=1, max_size=8),
    st.floats(1e-12, 1e-9),
)
def test_it_is_never_more_than_proportional(points: list[tuple[float, float]], pace: float) -> None:
    paces, seconds = [s for s, _ in points], [t for _, t in points]
    mean = sum(paces) / len(paces)
    spread = max(abs(pace - s) for s in paces)
    slope = sum(seconds) / len(seconds) / mean
    assert min(seconds) - slope * spread - 1e-9 <= at_pace(paces, seconds, pace)
    assert at_pace(paces, seconds, pace) <= max(seconds) + slope * spread + 1e-9


def test_reads_are_noisy_within_their_level() -> None:
    """Half of the run in the fast level: between both levels' medians, whatever single reads said."""
    samples = [sample(SLOW * noise, 3.0) for noise in (0.97, 1.0, 1.1)] + [sample(FAST, 1.6) for _ in range(3)]
    settled = settle(samples, [(SLOW * 1.1, 1.0), (FAST * 1.02, 1.0)])
    assert settled[0].seconds[Stage.AFTER_ATTENTION] == pytest.approx(2.3)


def test_one_level_is_not_taken_apart() -> None:
    samples = [sample(SLOW * noise, 3.0 * noise) for noise in (0.9, 1.0, 1.1)]
    assert settle(samples, [(SLOW * 1.2, 1.0)])[0].seconds[Stage.AFTER_ATTENTION] == 3.0


def test_shapes_are_settled_apart_at_the_mean_pace() -> None:
    other = Sample(StepShape(decode_tokens=1), {Stage.AFTER_ATTENTION: 2.0}, 1e-5, SLOW, 2.0)
    both = settle([sample(SLOW, 1.0, 5.0), other, sample(SLOW, 1.0, 6.0)])
    assert [one.shape for one in both] == [SHAPE, other.shape]
    assert both[0].experts_touched == 5.5
    assert both[0].seconds[Stage.AFTER_ATTENTION] == 1.0 and both[1].seconds[Stage.AFTER_ATTENTION] == 2.0
