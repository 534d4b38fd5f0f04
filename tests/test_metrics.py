"""Prometheus' text format, and that what it says is what the engine counts."""

from __future__ import annotations

from fake_engine import FakeEngine

from moelens.metrics import engine_metrics, prometheus_text
from moelens.outputs import Metric


def test_counters_end_in_total_and_everything_has_its_type() -> None:
    text = prometheus_text(
        [
            Metric("moelens:steps", 7, "counter", "Passes."),
            Metric("moelens:share", 0.25, "gauge", "A \\ and\na line"),
        ]
    )
    assert text == (
        "# HELP moelens:steps_total Passes.\n# TYPE moelens:steps_total counter\nmoelens:steps_total 7\n"
        "# HELP moelens:share A \\\\ and\\na line\n# TYPE moelens:share gauge\nmoelens:share 0.25\n"
    )


def test_every_metric_is_named_once_and_explained() -> None:
    engine = FakeEngine(None)
    engine.totals.stage_seconds["attend decodes"] = 1.5
    metrics = engine_metrics(engine)  # type: ignore[arg-type]
    names = [metric.name for metric in metrics]
    assert len(set(names)) == len(names)
    assert all(metric.help and metric.name.startswith("moelens:") for metric in metrics)
    assert "moelens:attend_decodes_seconds" in names


def test_what_was_expected_is_told_once_it_is_known() -> None:
    engine = FakeEngine(None)
    assert expected(engine) == []
    engine.totals.expected_seconds = 2.5
    assert expected(engine) == [2.5]


def expected(engine: FakeEngine) -> list[float]:
    metrics = engine_metrics(engine)  # type: ignore[arg-type]
    return [metric.value for metric in metrics if metric.name == "moelens:expected_seconds"]


def test_a_lanes_utilisation_is_its_share_of_the_steps() -> None:
    engine = FakeEngine(None)
    assert utilisation(engine) == {"device": 0.0, "host": 0.0, "to_device": 0.0, "to_host": 0.0, "disk": 0.0}
    engine.totals.prefill_seconds, engine.totals.decode_seconds = 3.0, 5.0
    engine.totals.stage_seconds = {"attend decodes": 1.5, "store kv": 0.5, "after attention": 6.0, "load": 4.0}
    assert utilisation(engine) == {"device": 0.75, "host": 0.25, "to_device": 0.5, "to_host": 0.0, "disk": 0.0}


def utilisation(engine: FakeEngine) -> dict[str, float]:
    metrics = engine_metrics(engine)  # type: ignore[arg-type]
    ending = "_utilisation_perc"
    return {
        metric.name.removeprefix("moelens:").removesuffix(ending): metric.value
        for metric in metrics
        if metric.name.endswith(ending)
    }
