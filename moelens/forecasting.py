"""Has an engine's steps watched while a call runs, so that its bar can say what the rest will take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

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


def make_forecast(engine: Engine, workload: Workload) -> Forecast:
    """Of the engine's machine as it was measured, or else of one that the first steps make known."""
    from moelens.ops.native import choose_isa
    from moelens.planning.forecast import Forecast, unmeasured
    from moelens.planning.measured import known_hardware

    threads, known = engine.plan.threads, None
    if not engine.has_device:
        known = known_hardware(engine.config, threads, choose_isa(None))
    hardware = known or unmeasured(threads, has_device=engine.has_device)
    cost = CostModel(engine.config, hardware, load_chunks=engine.plan.load_chunks)
    return Forecast(cost, engine.plan, workload, is_measured=known is not None)
