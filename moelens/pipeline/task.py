"""A step as data: tasks, each a unit of work on one resource, with the tasks that must be done before."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Resource(enum.Enum):
    """What does the work; each has one in-order lane."""

    DEVICE = "device"
    HOST = "host"
    TO_DEVICE = "to device"
    TO_HOST = "to host"
    DISK = "disk"

    __hash__ = object.__hash__  # each is one object; Enum's own hashes its name each time


class Stage(enum.Enum):
    """The kinds of tasks, in the order in which a layer meets them; `resource` is where each runs.

    ROUTE to EXPERTS stand in the place of AFTER_ATTENTION where only the experts that rows go to are brought; the host
    may finish some of the rows meanwhile (FINISH_ROWS), whose experts then need not be. READ and
    READ_EXPERTS bring experts that lie in files to the host.
    """

    INPUT = "input"
    READ = "read"
    LOAD = "load"
    BEFORE_ATTENTION = "before attention"
    OFFLOAD = "offload"
    STORE_KV = "store kv"
    ATTEND_PREFILLS = "attend prefills"
    ATTEND_DECODES = "attend decodes"
    ATTEND_RESUMED = "attend resumed"
    UPLOAD = "upload"
    AFTER_ATTENTION = "after attention"
    ROUTE = "route"
    OFFLOAD_ROUTES = "offload routes"
    READ_EXPERTS = "read experts"
    LOAD_EXPERTS = "load experts"
    FINISH_ROWS = "finish rows"
    UPLOAD_ROWS = "upload rows"
    EXPERTS = "experts"
    LOGITS = "logits"
    OFFLOAD_LOGITS = "offload logits"
    SAMPLE = "sample"

    __hash__ = object.__hash__

    @property
    def resource(self) -> Resource:
        return _RESOURCES[self]


_RESOURCES = {
    Stage.INPUT: Resource.TO_DEVICE,
    Stage.READ: Resource.DISK,
    Stage.LOAD: Resource.TO_DEVICE,
    Stage.BEFORE_ATTENTION: Resource.DEVICE,
    Stage.OFFLOAD: Resource.TO_HOST,
    Stage.STORE_KV: Resource.HOST,
    Stage.ATTEND_PREFILLS: Resource.DEVICE,
    Stage.ATTEND_DECODES: Resource.HOST,
    Stage.ATTEND_RESUMED: Resource.HOST,
    Stage.UPLOAD: Resource.TO_DEVICE,
    Stage.AFTER_ATTENTION: Resource.DEVICE,
    Stage.ROUTE: Resource.DEVICE,
    Stage.OFFLOAD_ROUTES: Resource.TO_HOST,
    Stage.READ_EXPERTS: Resource.DISK,
    Stage.LOAD_EXPERTS: Resource.TO_DEVICE,
    Stage.FINISH_ROWS: Resource.HOST,
    Stage.UPLOAD_ROWS: Resource.TO_DEVICE,
    Stage.EXPERTS: Resource.DEVICE,
    Stage.LOGITS: Resource.DEVICE,
    Stage.OFFLOAD_LOGITS: Resource.TO_HOST,
    Stage.SAMPLE: Resource.HOST,
}

OF_WEIGHTS = (Stage.LOAD, Stage.READ)  # and of no rows
# Of rows that give logits, after the layers, LOGIT_ROWS of them at a time.
OF_LOGITS = (Stage.LOGITS, Stage.OFFLOAD_LOGITS, Stage.SAMPLE)
OF_NO_LAYER = (Stage.INPUT, *OF_LOGITS)


class Experts(enum.Enum):
    """How the routed experts of a layer (or its dense block) come to the device in a step."""

    RESIDENT = "resident"  # they lie there
    WHOLE = "whole"  # all of them, ahead of time, in chunks
    ROUTED = "routed"  # those that the step's rows go to, once that is known
    DIVIDED = "divided"  # those that some of the rows go to; the host finishes the others, where all lie

    @property
    def wait_for_routes(self) -> bool:
        """Whether they come when the router has chosen."""
        return self in (Experts.ROUTED, Experts.DIVIDED)


@dataclass(frozen=True)
class LayerLoad:
    """What of a layer's weights has to be brought to the device in a step.

    `front` is all that the layer needs before its routed experts: norms, projections, router, shared experts. With
    `from_disk` the experts lie in files, and the host must read those that are used, all or the routed ones, first.
    """

    front: bool = False
    experts: Experts = Experts.RESIDENT
    from_disk: bool = False

    @property
    def streams(self) -> bool:
        """Whether anything has to be brought."""
        return self.front or self.experts is not Experts.RESIDENT

    @property
    def is_read_whole(self) -> bool:
        """Whether all experts are read from files, ahead of time."""
        return self.from_disk and not self.experts.wait_for_routes


@dataclass(frozen=True)
class Task:
    """One unit of work.

    `after` are ids of earlier tasks. `chunk` tells the pieces of a stage apart: of a LOAD, 0 is the layer's front and
    1 … are its experts; of LOGITS to SAMPLE, groups of LOGIT_ROWS rows. A READ or LOAD belongs to all parts: part 0. A
    `carried` task is not waited for at the step's end: it prepares the next one, as far as there is time until then.
    """

    id: int
    stage: Stage
    layer: int
    part: int
    after: tuple[int, ...]
    chunk: int = 0
    carried: bool = False
