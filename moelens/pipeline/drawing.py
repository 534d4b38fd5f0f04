"""Timelines for people: as a trace for Perfetto or chrome://tracing, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moelens.errors import ConfigError
from moelens.pipeline.task import Resource, Stage
from moelens.pipeline.timeline import Span, Timeline

LANES = (Resource.DISK, Resource.TO_DEVICE, Resource.DEVICE, Resource.HOST, Resource.TO_HOST)  # from top to bottom
# What is drawn alike: weights, the two halves of a layer on the device, attention, transfers of rows, the ends.
COLOURS: dict[str, tuple[str, tuple[Stage, ...]]] = {
    "weights": ("#4c78a8", (Stage.READ, Stage.READ_EXPERTS, Stage.LOAD, Stage.LOAD_EXPERTS)),
    "before attention": ("#f2b447", (Stage.BEFORE_ATTENTION,)),
    "experts": ("#e4572e", (Stage.AFTER_ATTENTION, Stage.ROUTE, Stage.EXPERTS, Stage.FINISH_ROWS)),
    "attention": ("#54a24b", (Stage.ATTEND_DECODES, Stage.ATTEND_RESUMED, Stage.ATTEND_PREFILLS)),
    "rows": (
        "#9d76b5",
        (
            *(Stage.INPUT, Stage.OFFLOAD, Stage.STORE_KV, Stage.UPLOAD),
            *(Stage.OFFLOAD_ROUTES, Stage.UPLOAD_ROWS, Stage.OFFLOAD_LOGITS),
        ),
    ),
    "tokens": ("#79706e", (Stage.LOGITS, Stage.SAMPLE)),
}


def write_trace(timeline: Timeline, path: Path) -> None:
    """The timeline in Chrome's trace format: one thread per lane, times in microseconds from its begin."""
    begin = _begin(timeline)
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": tid, "args": {"name": lane.value}}
        for tid, lane in enumerate(LANES)
    ]
    for span in timeline.spans:
        task = span.task
        events.append(
            {
                "name": f"{task.stage.value} {task.layer}",
                "cat": task.stage.value,
                "ph": "X",
                "ts": (span.start_seconds - begin) * 1e6,
                "dur": span.seconds * 1e6,
                "pid": 0,
                "tid": LANES.index(task.stage.resource),
                "args": {
                    "layer": task.layer,
                    "part": task.part,
                    "chunk": task.chunk,
                    "rows": span.rows,
                    "bytes": span.moved_bytes,
                },
            }
        )
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")


def draw_timeline(timeline: Timeline, path: Path, *, title: str = "") -> None:
    """A picture of lanes over time, with each one's utilisation; part 0 is drawn dark, others lighter.

    Raises ConfigError when matplotlib is not installed, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ConfigError(f"A picture needs matplotlib ({error}): pip install 'moelens[timeline]'.") from error
    if not timeline.spans:
        raise ConfigError("The timeline is empty: no step has run since it was started.")
    begin, seconds = _begin(timeline), timeline.seconds
    lanes = [lane for lane in LANES if any(span.task.stage.resource is lane for span in timeline.spans)]
    figure = Figure(figsize=(12, 0.8 + 0.55 * len(lanes)), layout="constrained")
    axes = figure.add_subplot()
    for row, lane in enumerate(reversed(lanes)):
        spans = [span for span in timeline.spans if span.task.stage.resource is lane]
        for colour, opacity, ranges in _bars(spans, begin):
            axes.broken_barh(ranges, (row - 0.4, 0.8), color=colour, alpha=opacity, linewidth=0)
    labels = [f"{lane.value}  {timeline.busy_seconds(lane) / seconds:.0%}" for lane in reversed(lanes)]
    axes.set_yticks(range(len(lanes)), labels)
    axes.set_xlim(0, seconds)
    axes.set_xlabel("seconds")
    axes.set_title(title, fontsize=10)
    patches = [Patch(color=colour, label=name) for name, (colour, _) in COLOURS.items()]
    figure.legend(handles=patches, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def write_timeline(timeline: Timeline, path: Path) -> None:
    """A trace where `path` ends in .json, a picture where it ends in .png.

    Raises ConfigError for another ending, and as `draw_timeline` does.
    """
    if path.suffix == ".json":
        write_trace(timeline, path)
    elif path.suffix == ".png":
        draw_timeline(timeline, path)
    else:
        raise ConfigError(f"{str(path)!r} should end in .json (a trace) or .png (a picture).")


def _bars(spans: Sequence[Span], begin: float) -> list[tuple[str, float, list[tuple[float, float]]]]:
    """Colour, opacity, and (begin, length) of the spans that have them."""
    bars: dict[tuple[str, float], list[tuple[float, float]]] = {}
    colours = {stage: colour for colour, stages in COLOURS.values() for stage in stages}
    for span in spans:
        opacity = 1.0 if span.task.part % 2 == 0 else 0.55
        bars.setdefault((colours[span.task.stage], opacity), []).append((span.start_seconds - begin, span.seconds))
    return [(colour, opacity, ranges) for (colour, opacity), ranges in bars.items()]


def _begin(timeline: Timeline) -> float:
    return min((span.start_seconds for span in timeline.spans), default=0.0)
