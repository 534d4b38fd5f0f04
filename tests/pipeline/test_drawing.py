"""What is drawn of a timeline, executed or simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moelens.cost.workload import StepShape
from moelens.errors import ConfigError
from moelens.machine.simulated import LANES, SimulatedMachine
from moelens.pipeline.drawing import COLOURS, draw_timeline, write_timeline
from moelens.pipeline.step import step_tasks
from moelens.pipeline.task import Experts, LayerLoad, Resource, Stage
from moelens.pipeline.timeline import Timeline
from moelens.plan import Plan

PLAN = Plan(step_tokens=8, max_requests=2, kv_blocks=4, ring_layers=2, load_chunks=2)


def simulated() -> Timeline:
    tasks = step_tasks([StepShape(2, 5, 1, 1, 2)] * 2, [LayerLoad(True, Experts.WHOLE)] * 3, PLAN)
    times = SimulatedMachine(LANES, 1e9).run(tasks, lambda task: (0.25, 0.0))
    return Timeline.of(tasks, times.begins, times.ends)


def test_a_simulated_step_has_a_timeline() -> None:
    timeline = simulated()
    loads = sum(span.task.stage.resource is Resource.TO_DEVICE for span in timeline.spans)
    assert timeline.busy_seconds(Resource.TO_DEVICE) == 0.25 * loads
    assert timeline.seconds >= timeline.busy_seconds(Resource.TO_DEVICE)


def test_a_trace_has_every_task_on_its_lane(tmp_path: Path) -> None:
    timeline = simulated()
    write_timeline(timeline, tmp_path / "out.json")
    events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    tasks = [event for event in events if event["ph"] == "X"]
    assert len(tasks) == len(timeline.spans) and min(event["ts"] for event in tasks) == 0
    for event, span in zip(tasks, timeline.spans, strict=True):
        assert names[event["tid"]] == span.task.stage.resource.value
        assert event["dur"] == pytest.approx(span.seconds * 1e6)
        assert (event["args"]["layer"], event["args"]["part"]) == (span.task.layer, span.task.part)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    write_timeline(simulated(), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_what_can_not_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"should end in \.json .* or \.png"):
        write_timeline(simulated(), tmp_path / "out.svg")
    with pytest.raises(ConfigError, match="no step has run"):
        draw_timeline(Timeline(), tmp_path / "out.png")


def test_every_stage_has_one_colour() -> None:
    assert sorted(stage.value for _, stages in COLOURS.values() for stage in stages) == sorted(s.value for s in Stage)
