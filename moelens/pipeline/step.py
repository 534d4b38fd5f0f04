"""Makes the tasks of one step: the one description that is executed, simulated and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moelens.cost.footprint import LOGIT_ROWS
from moelens.cost.workload import StepShape
from moelens.pipeline.task import Experts, LayerLoad, Stage, Task
from moelens.plan import Plan

_OF_LOGITS = (Stage.LOGITS, Stage.OFFLOAD_LOGITS, Stage.SAMPLE)


def step_tasks(shapes: Sequence[StepShape], loads: Sequence[LayerLoad], plan: Plan) -> list[Task]:
    """The tasks of one pass of all layers over parts of the given shapes, `loads` one per layer.

    The order is one in which they may be submitted, and in which a machine with a single lane may run them. Parts leave
    a layer and enter the next at once, one after the other: while the host attends for one part, the device works for
    another. The n-th layer that streams uses ring slot n modulo `plan.ring_layers`; its weights come, in
    `plan.load_chunks` chunks spread between the uploads of attended rows, when the slot's last layer has been left.
    The first layers' weights for the next step follow those of the last ones.
    """
    step = _Step(shapes, loads, plan)
    step.make()
    return step.tasks


class _Step:
    def __init__(self, shapes: Sequence[StepShape], loads: Sequence[LayerLoad], plan: Plan) -> None:
        self.tasks: list[Task] = []
        self._shapes = shapes
        self._loads = loads
        self._plan = plan
        self._parts = range(len(shapes))
        self._streamed = [layer for layer, load in enumerate(loads) if load.streams]
        self._front: dict[int, tuple[int, ...]] = {}  # by layer, the loads that BEFORE_ATTENTION comes after
        self._experts: dict[int, tuple[int, ...]] = {}  # and those that the experts come after
        self._left: dict[int, tuple[int, ...]] = {}  # the tasks that were the last to use a layer's weights
        self._waiting: list[tuple[int, int, tuple[int, ...]]] = []  # chunks to be loaded: layer, chunk, after
        self._overdue = 0  # of those, how many belong to slots that were left more than a layer ago
        self._let_in = 0  # and how many came with the last slot
        self._attended: dict[int, list[int]] = {}  # by part, what its rows' attention on the host ends with
        self._prefilled: dict[int, tuple[int, ...]] = {}
        # By part: until the layer before is out of these places, this one's q, k and v must not be written there.
        self._offloaded: dict[int, tuple[int, ...]] = dict.fromkeys(self._parts, ())
        self._stored: dict[int, tuple[int, ...]] = dict.fromkeys(self._parts, ())
        self._position = {layer: index for index, layer in enumerate(self._streamed)}

    def make(self) -> None:
        inputs = [self._add(Stage.INPUT, 0, part) for part in self._parts]
        for position, layer in enumerate(self._streamed[: self._plan.ring_layers]):
            self._queue(layer, ())
            if position == 0:  # the others' come as in any layer; what the step before has carried is there already
                self._load(len(self._waiting))
        self._let_in = len(self._waiting)
        for part in self._parts:
            self._enter(0, part, (inputs[part],))
        for layer in range(len(self._loads)):
            ends: list[int] = []
            for part in self._parts:
                self._load(self._share(part))
                left = self._leave(layer, part)
                ends.append(left)
                if layer + 1 < len(self._loads):
                    self._load(self._until_front(layer + 1))
                    self._enter(layer + 1, part, (left,))
                else:
                    self._finish(layer, part, left)
            self._left[layer] = tuple(ends)
            self._overdue = len(self._waiting)
            if layer in self._position:
                self._refill(layer)
            self._let_in = len(self._waiting) - self._overdue
        self._load(len(self._waiting))

    def _add(self, stage: Stage, layer: int, part: int, *after: tuple[int, ...], chunk: int = 0) -> int:
        before = tuple(dict.fromkeys(earlier for some in after for earlier in some))
        shape = StepShape() if stage is Stage.LOAD else self._shapes[part]
        if stage in _OF_LOGITS:
            shape = replace(shape, logit_rows=min(LOGIT_ROWS, shape.logit_rows - chunk * LOGIT_ROWS))
        carried = stage is Stage.LOAD and layer in self._left  # the layer has been left: this is for the next step
        self.tasks.append(Task(len(self.tasks), stage, layer, part, shape, before, chunk, carried))
        return len(self.tasks) - 1

    # --- weights ------------------------------------------------------------------------------------------------------
    def _refill(self, layer: int) -> None:
        """Queue the streamed layer that is next for the slot that `layer` has just left; after the last, the first."""
        position = self._position[layer] + self._plan.ring_layers
        if position >= len(self._streamed):
            position %= self._plan.ring_layers
        if self._streamed[position] != layer:
            self._queue(self._streamed[position], self._left[layer])

    def _queue(self, layer: int, free: tuple[int, ...]) -> None:
        load = self._loads[layer]
        first = 0 if load.front else 1
        last = self._plan.load_chunks if load.experts is Experts.WHOLE else 0
        self._waiting += [(layer, chunk, free) for chunk in range(first, last + 1)]

    def _share(self, part: int) -> int:
        """How many of the waiting chunks go before the upload of `part`.

        The slot was left just before the first part's rows come up, so these go first; then, before each other part's,
        as many as are copied while the device works for one. What is left goes before the next layer's.
        """
        return self._overdue if part == 0 else -(-self._let_in // len(self._shapes))

    def _until_front(self, layer: int) -> int:
        """How many of the waiting chunks have to go before a part enters `layer`: up to its front, if that waits."""
        fronts = [i for i, (waiting, chunk, _) in enumerate(self._waiting) if waiting == layer and chunk == 0]
        return fronts[0] + 1 if fronts and layer not in self._left else 0

    def _load(self, count: int) -> None:
        for layer, chunk, free in self._waiting[:count]:
            load = self._add(Stage.LOAD, layer, 0, free, chunk=chunk)
            loaded = self._front if chunk == 0 else self._experts
            if layer not in self._left:
                loaded[layer] = (*loaded.get(layer, ()), load)
        del self._waiting[:count]

    # --- a part's way through a layer ---------------------------------------------------------------------------------
    def _enter(self, layer: int, part: int, after: tuple[int, ...]) -> None:
        """BEFORE_ATTENTION to the host's attention of one part."""
        shape = self._shapes[part]
        front = self._front.get(layer, ())
        projected = (self._add(Stage.BEFORE_ATTENTION, layer, part, after, front, self._offloaded[part]),)
        offloaded = (self._add(Stage.OFFLOAD, layer, part, projected, self._stored[part]),)
        stored = (self._add(Stage.STORE_KV, layer, part, offloaded),)
        self._offloaded[part] = offloaded
        self._stored[part], self._attended[part], self._prefilled[part] = stored, [], projected
        if shape.prefill_tokens > shape.resumed_tokens:
            self._prefilled[part] = (self._add(Stage.ATTEND_PREFILLS, layer, part, projected),)
        if shape.decode_tokens:
            self._attended[part].append(self._add(Stage.ATTEND_DECODES, layer, part, stored))
        if shape.resumed_tokens:
            self._attended[part].append(self._add(Stage.ATTEND_RESUMED, layer, part, stored))

    def _leave(self, layer: int, part: int) -> int:
        """UPLOAD to the layer's end of one part; returns the last task."""
        attended = self._prefilled[part]
        if self._attended[part]:
            uploaded = self._add(Stage.UPLOAD, layer, part, tuple(self._attended[part]))
            attended = (*attended, uploaded)
        experts = self._experts.get(layer, ())
        if not self._loads[layer].experts.wait_for_routes:
            return self._add(Stage.AFTER_ATTENTION, layer, part, attended, experts)
        routed = self._add(Stage.ROUTE, layer, part, attended)
        known = self._add(Stage.OFFLOAD_ROUTES, layer, part, (routed,))
        loaded = self._add(Stage.LOAD_EXPERTS, layer, part, (known,), self._slot_free(layer))
        if self._loads[layer].experts is Experts.ROUTED:
            return self._add(Stage.EXPERTS, layer, part, (routed, loaded))
        finished = self._add(Stage.FINISH_ROWS, layer, part, (known,))
        uploaded = self._add(Stage.UPLOAD_ROWS, layer, part, (finished,))
        return self._add(Stage.EXPERTS, layer, part, (routed, loaded, uploaded))

    def _slot_free(self, layer: int) -> tuple[int, ...]:
        """What has to be over before experts may be written into the layer's ring slot."""
        before = self._position[layer] - self._plan.ring_layers
        return self._left[self._streamed[before]] if before >= 0 else ()

    def _finish(self, layer: int, part: int, left: int) -> None:
        """The logits of one part, at most LOGIT_ROWS rows at a time; two groups of them exist at once on each side."""
        offloaded: list[int] = []
        sampled: list[int] = []
        for chunk in range(-(-self._shapes[part].logit_rows // LOGIT_ROWS)):
            logits = self._add(Stage.LOGITS, layer, part, (left,), tuple(offloaded[-2:-1]), chunk=chunk)
            offloaded.append(
                self._add(Stage.OFFLOAD_LOGITS, layer, part, (logits,), tuple(sampled[-2:-1]), chunk=chunk)
            )
            sampled.append(self._add(Stage.SAMPLE, layer, part, (offloaded[-1],), chunk=chunk))
