"""Makes the tasks of one step: the one description that is executed, simulated and drawn."""

from __future__ import annotations

from collections.abc import Sequence

from moelens.cost.footprint import LOGIT_ROWS
from moelens.cost.workload import StepShape
from moelens.pipeline.task import OF_WEIGHTS, Experts, LayerLoad, Stage, Task
from moelens.pipeline.turns import Turns
from moelens.plan import Plan

MOST_PATTERNS = 256  # of steps whose tasks are kept: some ten are met, unless experts are divided in many ways


def step_tasks(shapes: Sequence[StepShape], loads: Sequence[LayerLoad], plan: Plan) -> list[Task]:
    """The tasks of one pass of all layers over parts of the given shapes, `loads` one per layer.

    The order is one in which they may be submitted, and in which a machine with a single lane may run them. Parts leave
    a layer and enter the next at once, one after the other: while the host attends for one part, the device works for
    another. The n-th layer that streams uses ring slot n modulo `plan.ring_layers`; its weights come, in
    `plan.load_chunks` chunks spread between the uploads of attended rows, when the slot's last layer has been left.
    The first layers' weights for the next step follow those of the last ones. Experts that lie in files pass through
    `plan.disk_ring_layers` slots of the host in the same way, a layer in one task.
    """
    step = _Step(shapes, loads, plan)
    step.make()
    return step.tasks


class StepTasks:
    """The tasks of a plan's steps, made once for all that have the same ones."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known: dict[tuple[object, ...], list[Task]] = {}

    def __call__(self, shapes: Sequence[StepShape], loads: Sequence[LayerLoad]) -> Sequence[Task]:
        """As `step_tasks`."""
        pattern = tuple(loads), *(_pattern(shape) for shape in shapes)
        tasks = self._known.get(pattern)
        if tasks is None:
            if len(self._known) == MOST_PATTERNS:
                self._known.clear()
            tasks = self._known[pattern] = step_tasks(shapes, loads, self._plan)
        return tasks


def _pattern(part: StepShape) -> tuple[bool, bool, bool, int]:
    """What of a part's shape tells which tasks there are."""
    groups = -(-part.logit_rows // LOGIT_ROWS)
    fresh = part.prefill_tokens > part.resumed_tokens
    return part.decode_tokens > 0, fresh, part.resumed_tokens > 0, groups


class _Step:
    def __init__(self, shapes: Sequence[StepShape], loads: Sequence[LayerLoad], plan: Plan) -> None:
        self.tasks: list[Task] = []
        self._shapes = shapes
        self._loads = loads
        self._plan = plan
        self._parts = range(len(shapes))
        streamed = [layer for layer, load in enumerate(loads) if load.streams]
        self._turns = Turns(streamed, plan.ring_layers, streamed)
        on_disk = {layer for layer, load in enumerate(loads) if load.from_disk}
        self._disk_turns = Turns(plan.disk_layers, plan.disk_ring_layers, on_disk)
        self._front: dict[int, tuple[int, ...]] = {}  # by layer, the loads that BEFORE_ATTENTION comes after
        self._experts: dict[int, tuple[int, ...]] = {}  # and those that the experts come after
        self._read: dict[int, tuple[int, ...]] = {}  # and those that bring them from a file, for this step or the next
        self._unread: dict[
            int, tuple[int, ...]
        ] = {}  # layers that can't be loaded before they are read: loads' `after`
        self._left: dict[int, tuple[int, ...]] = {}  # the tasks that were the last to use a layer's weights
        self._waiting: list[tuple[int, int, tuple[int, ...]]] = []  # chunks to be loaded: layer, chunk, after
        self._overdue = 0  # of those, how many belong to slots that were left more than a layer ago
        self._let_in = 0  # and how many came with the last slot
        self._attended: dict[int, list[int]] = {}  # by part, what its rows' attention on the host ends with
        self._prefilled: dict[int, tuple[int, ...]] = {}
        # By part: until the layer before is out of these places, this one's q, k and v must not be written there.
        self._offloaded: dict[int, tuple[int, ...]] = dict.fromkeys(self._parts, ())
        self._stored: dict[int, tuple[int, ...]] = dict.fromkeys(self._parts, ())

    def make(self) -> None:
        inputs = [self._add(Stage.INPUT, 0, part) for part in self._parts]
        for layer in self._disk_turns.firsts:
            self._read_whole(layer, ())
        for position, layer in enumerate(self._turns.firsts):
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
            self._refill(layer)
            self._let_in = len(self._waiting) - self._overdue
        self._load(len(self._waiting))

    def _add(self, stage: Stage, layer: int, part: int, *after: tuple[int, ...], chunk: int = 0) -> int:
        before = tuple(dict.fromkeys(earlier for some in after for earlier in some))
        # Weights of a layer that has been left are for the next step.
        carried = stage in OF_WEIGHTS and layer in self._left
        self.tasks.append(Task(len(self.tasks), stage, layer, part, before, chunk, carried))
        return len(self.tasks) - 1

    # --- weights ------------------------------------------------------------------------------------------------------
    def _refill(self, layer: int) -> None:
        """Queue the layers that are next for the slots, the host's and the device's, that `layer` has just left."""
        if layer in self._disk_turns and (following := self._disk_turns.following(layer)) is not None:
            self._read_whole(following, self._left[layer])
        following = self._turns.following(layer) if layer in self._turns else None
        if following is not None and not self._waits_for_a_slot(following):
            self._queue(following, self._left[layer])

    def _read_whole(self, layer: int, free: tuple[int, ...]) -> None:
        """Have all of a layer's experts read from a file, when the slot is free."""
        if self._loads[layer].is_read_whole:
            self._read[layer] = (self._add(Stage.READ, layer, 0, free),)
            if layer in self._unread:
                self._queue(layer, self._unread.pop(layer))

    def _waits_for_a_slot(self, layer: int) -> bool:
        """Whether a layer, wanted for the next step, can't be read yet: its slot is still to be used by others."""
        if layer not in self._left or not self._loads[layer].is_read_whole:
            return False
        return not self._disk_turns.is_over(layer, self._left)

    def _queue(self, layer: int, free: tuple[int, ...]) -> None:
        """Queue the chunks of a layer for a slot of the device; later, if a slot of the host is not free for it yet."""
        load = self._loads[layer]
        if load.is_read_whole and layer not in self._read:
            self._unread[layer] = free
            return
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
            load = self._add(Stage.LOAD, layer, 0, free, self._read.get(layer, ()) if chunk else (), chunk=chunk)
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
        experts = (*self._experts.get(layer, ()), *self._read.get(layer, ()))
        if not self._loads[layer].experts.wait_for_routes:
            return self._add(Stage.AFTER_ATTENTION, layer, part, attended, experts)
        routed = self._add(Stage.ROUTE, layer, part, attended)
        known = self._add(Stage.OFFLOAD_ROUTES, layer, part, (routed,))
        if self._loads[layer].from_disk:
            known = self._add(Stage.READ_EXPERTS, layer, part, (known,), self._slot_free(self._disk_turns, layer))
        loaded = self._add(Stage.LOAD_EXPERTS, layer, part, (known,), self._slot_free(self._turns, layer))
        if self._loads[layer].experts is Experts.ROUTED:
            return self._add(Stage.EXPERTS, layer, part, (routed, loaded))
        finished = self._add(Stage.FINISH_ROWS, layer, part, (known,))
        uploaded = self._add(Stage.UPLOAD_ROWS, layer, part, (finished,))
        return self._add(Stage.EXPERTS, layer, part, (routed, loaded, uploaded))

    def _slot_free(self, turns: Turns, layer: int) -> tuple[int, ...]:
        """What has to be over before experts may be written into the layer's slot of a ring."""
        before = turns.before(layer)
        return () if before is None else self._left[before]

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
