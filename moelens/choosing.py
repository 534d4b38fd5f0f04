"""Chooses what an engine lays out in memory when it is made, and limits of its steps when requests are known."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moelens.cost.hardware import HardwareSpec
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.forecasting import learn_routing
from moelens.models.config import ModelConfig
from moelens.plan import Placement, Plan
from moelens.planning.default import Limits, Sizes, choose_plan
from moelens.planning.device import DeviceSizes
from moelens.planning.forecast import STEPS, unmeasured
from moelens.planning.pricing import StepPricing
from moelens.planning.search import WORTH, choose
from moelens.planning.tuning import UNMEASURED_WORTH, Room, tune

if TYPE_CHECKING:
    from moelens.engine import Engine

logger = logging.getLogger(__name__)


# The job that memory is laid out for, as nobody knows yet which will come: many requests of a usual length.
USUAL_REQUESTS = 20_000
USUAL_PROMPT_TOKENS = 512
USUAL_OUTPUT_TOKENS = 128


@dataclass(frozen=True)
class Layout:
    """The plan that an engine is made with, what lies on its device, its longest sequence (tokens), and why."""

    plan: Plan
    placement: Placement | None
    max_model_len: int
    reasons: tuple[str, ...]


def choose_layout(
    config: ModelConfig,
    sizes: Sizes,
    limits: Limits,
    threads: int,
    hardware: HardwareSpec,
    device: DeviceSizes | None,
    *,
    measured: bool,
) -> Layout:
    """The plan that is expected to be fastest for many requests of a usual length, around what `limits` fix.

    Where `hardware` is guessed and not `measured`, another than the default has to gain 10 %, and where there is no
    device either the default is taken. Raises what `choose_plan` raises.
    """
    plan, length = choose_plan(config, sizes, limits, threads)
    if device is None and not measured:
        return Layout(plan, None, length, ("laid out by default, as this machine was not measured",))
    output = min(USUAL_OUTPUT_TOKENS, max(1, length // 5))
    usual = Workload.even(USUAL_REQUESTS, min(USUAL_PROMPT_TOKENS, max(1, length - output)), output)
    kept = replace(limits, max_model_len=length)
    worth = WORTH if measured else UNMEASURED_WORTH
    choice = choose(CostModel(config, hardware), sizes, kept, threads, usual, device=device, worth=worth)
    first = f"laid out for many requests of {usual.prompt_tokens[0]} prompt and {output} output tokens"
    return Layout(choice.plan, choice.placement, length, (first, *choice.reasons))


class LimitChooser:
    """An engine's plan, chosen anew around what was laid out when it was loaded.

    With a device the costs are those that its steps were measured at, else those of the machine as it was measured
    before. Tokens do not depend on any of it.
    """

    def __init__(
        self, engine: Engine, room: Room, pricing: StepPricing | None = None, reasons: tuple[str, ...] = ()
    ) -> None:
        """`reasons` are those of the engine's plan as it was made with."""
        self._engine = engine
        self._pricing = pricing
        self._base = engine.plan
        self._room = room
        self._of_layout = self.reasons = reasons

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
        self.reasons = (*tuning.reasons, *self._of_layout)
