"""Holds an engine's steps against what the performance model expects, for the bar of a call and for metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.devices import Device
from moelens.models.config import ModelConfig
from moelens.plan import Placement, Plan

if TYPE_CHECKING:
    from moelens.cost.hardware import HardwareSpec
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


def machine_measured(config: ModelConfig, threads: int, device: Device) -> HardwareSpec | None:
    """This machine and `device`; None if they were not measured before."""
    from moelens.ops.native import choose_isa
    from moelens.planning.measured import known_hardware

    return known_hardware(config, threads, choose_isa(None), device)


def cost_model(
    config: ModelConfig, plan: Plan, hardware: HardwareSpec, placement: Placement | None = None
) -> CostModel:
    """What steps of `plan` cost."""
    return CostModel(config, hardware, load_chunks=plan.load_chunks, placement=placement, disk_layers=plan.disk_layers)


def expect_steps(engine: Engine, cost: CostModel | None) -> None:
    """Have the engine count what its steps are expected to take, if what they cost was measured."""
    from moelens.planning.simulate import StepClock

    if cost is not None:
        hardware = replace(cost.hardware, disk_bytes_per_second=engine.disk_bytes_per_second)
        engine.cost = replace(cost, hardware=hardware)
        engine.expect_step = StepClock(engine.cost, engine.plan).expect


def learn_routing(engine: Engine) -> None:
    """Have what is expected of steps go by how rows were shared out among experts so far."""
    if engine.cost is not None and engine.cost.routing is not engine.routing:
        expect_steps(engine, replace(engine.cost, routing=engine.routing))


def make_forecast(engine: Engine, workload: Workload) -> Forecast:
    """Of the engine's machine as it was measured, or else of one that the first steps make known."""
    from moelens.planning.forecast import Forecast, unmeasured

    cost = engine.cost
    if cost is None:
        hardware = unmeasured(engine.plan.threads, has_device=engine.has_device)
        cost = replace(cost_model(engine.config, engine.plan, hardware), routing=engine.routing)
    return Forecast(cost, engine.plan, workload, is_measured=engine.cost is not None)
