"""Holds an engine's steps against what the performance model expects, for the bar of a call and for metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.devices import Device
from moelens.plan import Placement

if TYPE_CHECKING:
    from moelens.engine import Engine
    from moelens.planning.forecast import Forecast


@contextlib.contextmanager
def forecasting(engine: Engine, workload: Workload | None, *, wanted: bool) -> Iterator[Callable[[], str]]:
    """What is expected of the rest of a call, as text for its bar; nothing when nobody sees it.

    The engine's steps are watched until the call's end. Where the machine was measured before, the first text comes
    before the first step.
    """
    if not wanted or workload is None:
        yield str
        return
    forecast = make_forecast(engine, workload)
    engine.on_step = forecast.observe
    try:
        yield forecast.text
    finally:
        engine.on_step = None


def expect_steps(engine: Engine, device: Device, placement: Placement | None) -> None:
    """Have the engine count what its steps are expected to take, if this machine was measured before."""
    from moelens.ops.native import choose_isa
    from moelens.planning.measured import known_hardware
    from moelens.planning.simulate import StepClock

    hardware = known_hardware(engine.config, engine.plan.threads, choose_isa(None), device)
    if hardware is not None:
        hardware = replace(hardware, disk_bytes_per_second=engine.disk_bytes_per_second)
        engine.cost = CostModel(engine.config, hardware, load_chunks=engine.plan.load_chunks, placement=placement)
        engine.expect_step = StepClock(engine.cost, engine.plan).expect


def make_forecast(engine: Engine, workload: Workload) -> Forecast:
    """Of the engine's machine as it was measured, or else of one that the first steps make known."""
    from moelens.planning.forecast import Forecast, unmeasured

    cost = engine.cost
    if cost is None:
        hardware = unmeasured(engine.plan.threads, has_device=engine.has_device)
        cost = CostModel(engine.config, hardware, load_chunks=engine.plan.load_chunks)
    return Forecast(cost, engine.plan, workload, is_measured=engine.cost is not None)
