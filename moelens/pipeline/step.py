"""Makes the tasks of one step: the one description that is executed, simulated and drawn."""

from __future__ import annotations

from collections.abc import Sequence

from moelens.cost.workload import StepShape
from moelens.pipeline.task import Stage, Task
from moelens.plan import Plan


def step_tasks(shapes: Sequence[StepShape], layers: int, plan: Plan) -> list[Task]:
    """The tasks of one pass of all layers over parts of the given shapes, in an order in which they may be submitted.

    Parts leave layer l and enter layer l+1 one after the other: while the host attends for one part, the device works
    for another. The weights of layer l are loaded in `plan.load_chunks` chunks into the ring slot that layer
    l - plan.ring_layers has left, spread between the transfers of the layers before.
    """
    return _Step(shapes, layers, plan).tasks


class _Step:
    def __init__(self, shapes: Sequence[StepShape], layers: int, plan: Plan) -> None:
        self.tasks: list[Task] = []
        self._shapes = shapes
        self._plan = plan
        self._layers = layers
        self._loads: dict[int, list[int]] = {layer: [] for layer in range(layers)}
        self._last_use: dict[int, list[int]] = {layer: [] for layer in range(layers)}
        for layer in range(min(plan.ring_layers, layers)):
            self._load(layer)
        state = [self._before(0, part, ()) for part in range(len(shapes))]
        for layer in range(layers):
            for part in range(len(shapes)):
                attended = self._attend(layer, part, state[part])
                left = self._add(Stage.AFTER_ATTENTION, layer, part, (*attended, *self._loads[layer]))
                self._last_use[layer].append(left)
                if layer + 1 < layers:
                    state[part] = self._before(layer + 1, part, (left,))
                else:
                    self._add(Stage.LOGITS, layer, part, (left,))
            if layer + plan.ring_layers < layers:
                self._load(layer + plan.ring_layers)

    def _add(self, stage: Stage, layer: int, part: int, after: tuple[int, ...], chunk: int = 0) -> int:
        shape = StepShape() if stage is Stage.LOAD else self._shapes[part]
        self.tasks.append(Task(len(self.tasks), stage, layer, part, shape, after, chunk))
        return len(self.tasks) - 1

    def _load(self, layer: int) -> None:
        free = tuple(self._last_use.get(layer - self._plan.ring_layers, ()))
        for chunk in range(self._plan.load_chunks):
            self._loads[layer].append(self._add(Stage.LOAD, layer, 0, free, chunk))

    def _before(self, layer: int, part: int, after: tuple[int, ...]) -> int:
        return self._add(Stage.BEFORE_ATTENTION, layer, part, (*after, *self._loads[layer]))

    def _attend(self, layer: int, part: int, projected: int) -> tuple[int, ...]:
        """OFFLOAD to UPLOAD of one part; returns what AFTER_ATTENTION has to wait for."""
        shape = self._shapes[part]
        stored = self._add(Stage.STORE_KV, layer, part, (self._add(Stage.OFFLOAD, layer, part, (projected,)),))
        done: tuple[int, ...] = ()
        if shape.decode_tokens:
            decoded = self._add(Stage.ATTEND_DECODES, layer, part, (stored,))
            done = (self._add(Stage.UPLOAD, layer, part, (decoded,)),)
        if shape.prefill_tokens:
            done = (*done, self._add(Stage.ATTEND_PREFILLS, layer, part, (stored,)))
        return done
