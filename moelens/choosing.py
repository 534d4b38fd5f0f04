"""Chooses the limits of an engine's steps for each call, when its requests are known."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.forecasting import learn_routing
from moelens.planning.forecast import STEPS, unmeasured
from moelens.planning.pricing import StepPricing
from moelens.planning.tuning import Room, tune

if TYPE_CHECKING:
    from moelens.engine import Engine

logger = logging.getLogger(__name__)


class LimitChooser:
    """An engine's plan, chosen anew around what was laid out when it was loaded.

    With a device the costs are those that its steps were measured at, else those of the machine as it was measured
    before. Tokens do not depend on any of it.
    """

    def __init__(self, engine: Engine, room: Room, pricing: StepPricing | None = None) -> None:
        self._engine = engine
        self._pricing = pricing
        self._base = engine.plan
        self._room = room
        self.reasons: tuple[str, ...] = ("chosen for requests that nobody knows yet",)

    def choose(self, workload: Workload) -> None:
        """Give the engine the plan that is expected to end `workload` first."""
        engine = self._engine
        learn_routing(engine)
        if self._pricing is not None:
            measured = engine.cost is not None or self._pricing.observed_steps >= STEPS
            cost = self._pricing.cost
        else:
            guessed = unmeasured(self._base.threads, has_device=engine.has_device)
            measured = engine.cost is not None
            cost = engine.cost or CostModel(engine.config, guessed, engine.routing)
        touched = engine.scheduler.touched_blocks
        tuning = tune(cost, self._base, self._room, workload, measured=measured, touched_blocks=touched)
        if tuning.plan != engine.plan:
            logger.info("plan: %s (%s)", tuning.plan, "; ".join(tuning.reasons))
            engine.adopt(tuning.plan)
        self.reasons = tuning.reasons
