"""Holds an engine's steps against what the performance model expects, for the bar of a call and for metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from moelens.cost.hardware import HardwareSpec
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload

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


def expect_steps(engine: Engine) -> None:
    """Have the engine count what its steps are expected to take, if this machine was measured before."""
    from moelens.planning.simulate import StepClock

    hardware = known_machine(engine)
    if hardware is not None:
        engine.expect_seconds = StepClock(_cost_model(engine, hardware), engine.plan).seconds


def make_forecast(engine: Engine, workload: Workload) -> Forecast:
    """Of the engine's machine as it was measured, or else of one that the first steps make known."""
    from moelens.planning.forecast import Forecast, unmeasured

    known = known_machine(engine)
    hardware = known or unmeasured(engine.plan.threads, has_device=engine.has_device)
    return Forecast(_cost_model(engine, hardware), engine.plan, workload, is_measured=known is not None)


def known_machine(engine: Engine) -> HardwareSpec | None:
    """The engine's machine as it was measured before; None when it was not, or has a device, as only hosts were."""
    from moelens.ops.native import choose_isa
    from moelens.planning.measured import known_hardware

    return None if engine.has_device else known_hardware(engine.config, engine.plan.threads, choose_isa(None))


def _cost_model(engine: Engine, hardware: HardwareSpec) -> CostModel:
    return CostModel(engine.config, hardware, load_chunks=engine.plan.load_chunks)
