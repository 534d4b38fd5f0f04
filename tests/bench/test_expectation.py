"""A report says what was predicted, and names the stage that is off when the two part."""

from __future__ import annotations

from moelens.bench.expectation import Expectation, to_text

EXPECTED = Expectation(10.0, "the processor, most of all after attention", "after attention", 8.0, 12.0)


def test_near_predictions_are_one_line() -> None:
    text = to_text(EXPECTED, tokens=1000, elapsed_seconds=11.0)
    assert text.startswith("Predicted: 100.00 total tokens/s, measured 90.91, ratio 1.100")
    assert "the limit is the processor" in text
    assert "Warning" not in text


def test_far_ones_name_what_is_off() -> None:
    text = to_text(EXPECTED, tokens=1000, elapsed_seconds=14.0)
    assert "Warning: these part by over 15 %, most in after attention: 8.00 s expected, 12.00 s measured" in text


def test_an_unmeasured_machine_is_said_to_be_one() -> None:
    assert "not measured yet" in to_text(None, tokens=1, elapsed_seconds=1.0)
