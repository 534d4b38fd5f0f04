"""A step as data: tasks, each a unit of work on one resource, with the tasks that must be done before."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from moelens.cost.workload import StepShape


class Resource(enum.Enum):
    """What does the work; each has one in-order lane."""

    DEVICE = "device"
    HOST = "host"
    TO_DEVICE = "to device"
    TO_HOST = "to host"


class Stage(enum.Enum):
    """The kinds of tasks, in the order in which a layer meets them; `resource` is where each runs."""

    LOAD = "load"
    BEFORE_ATTENTION = "before attention"
    OFFLOAD = "offload"
    STORE_KV = "store kv"
    ATTEND_DECODES = "attend decodes"
    ATTEND_PREFILLS = "attend prefills"
    UPLOAD = "upload"
    AFTER_ATTENTION = "after attention"
    LOGITS = "logits"

    @property
    def resource(self) -> Resource:
        return _RESOURCES[self]


_RESOURCES = {
    Stage.LOAD: Resource.TO_DEVICE,
    Stage.BEFORE_ATTENTION: Resource.DEVICE,
    Stage.OFFLOAD: Resource.TO_HOST,
    Stage.STORE_KV: Resource.HOST,
    Stage.ATTEND_DECODES: Resource.HOST,
    Stage.ATTEND_PREFILLS: Resource.DEVICE,
    Stage.UPLOAD: Resource.TO_DEVICE,
    Stage.AFTER_ATTENTION: Resource.DEVICE,
    Stage.LOGITS: Resource.DEVICE,
}


@dataclass(frozen=True)
class Task:
    """One unit of work.

    `after` are ids of earlier tasks; `chunk` tells the pieces of a LOAD apart; a LOAD has part 0.
    """

    id: int
    stage: Stage
    layer: int
    part: int
    shape: StepShape
    after: tuple[int, ...]
    chunk: int = 0
