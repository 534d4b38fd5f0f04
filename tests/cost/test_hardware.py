"""A hardware file is read back as it was written, and a wrong one says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelens.cost.hardware import Curve, HardwareSpec, Processor, from_json, read_hardware, to_json
from moelens.errors import ConfigError

HOST = Processor("cpu", 1e12, 5e10, 1e10, 1e-5, {"store kv": Curve((1.0, 10.0), (2.0, 4.0), 1.0)})


@pytest.mark.parametrize(
    "hardware",
    [
        HardwareSpec("host only", HOST, step_seconds=0.1, bytes_per_second_by_threads=(3e10, 5e10)),
        HardwareSpec("both", HOST, Processor("gpu", 1e14, 1e12, 1e10), 2e10, 2e10, sources={"x": "a sheet"}),
    ],
)
def test_written_and_read_back(hardware: HardwareSpec, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(to_json(hardware)))
    assert read_hardware(path) == hardware


def test_a_curve_is_straight_on_logarithmic_axes() -> None:
    curve = Curve((1.0, 4.0, 16.0), (8.0, 2.0, 2.0), growth=1.0)
    assert [curve.at(x) for x in (0.1, 1, 2, 4, 8, 16, 64)] == pytest.approx([8, 8, 4, 2, 2, 2, 8])


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6, unique=True), st.data())
def test_a_curve_goes_through_its_points_and_not_beyond_them(x: list[float], data: st.DataObject) -> None:
    y = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(x), max_size=len(x)))
    curve = Curve(tuple(sorted(x)), tuple(y))
    assert [curve.at(point) for point in curve.x] == pytest.approx(y)
    assert min(y) * 0.999 <= curve.at(data.draw(st.floats(1e-4, 1e4))) <= max(y) * 1.001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read"),
        ('{"name": "x"}', "not a hardware file"),
        (
            '{"name": "x", "host": {"name": "h", "flops_per_second": 0, "bytes_per_second": 1, "memory_bytes": 1}}',
            "h: f",
        ),
        ("[]", "not a hardware file"),
    ],
)
def test_a_wrong_file_says_so(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_hardware(path)


def test_a_curve_that_is_none_is_refused() -> None:
    for x, y in (((1.0,), (1.0, 2.0)), ((2.0, 1.0), (1.0, 1.0)), ((), ()), ((0.0,), (1.0,))):
        with pytest.raises(ConfigError, match="measure the machine again"):
            Curve(x, y)


def test_from_json_refuses_an_unknown_figure() -> None:
    with pytest.raises(ConfigError, match="speed"):
        from_json({"name": "x", "host": to_json(HardwareSpec("h", HOST))["host"], "speed": 1}, "here")
