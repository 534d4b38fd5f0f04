"""What each task of a step does, on tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from moelens.cost.footprint import LOGIT_ROWS
from moelens.memory.kv_cache import KVCache
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Architecture, Weights
from moelens.ops.interface import Ops
from moelens.pipeline.task import Stage, Task
from moelens.schedule.batch import Batch, LogitRow, select_rows

UseLogits = Callable[[torch.Tensor, Sequence[LogitRow]], None]


class PartState:
    """One part's tensors between its tasks: x [T, H], q and attended [T, Q, D], k and v [T, K, D]."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.x: torch.Tensor
        self.q: torch.Tensor
        self.k: torch.Tensor
        self.v: torch.Tensor
        self.attended: list[torch.Tensor] = []


class Actions:
    """The tasks of one step on a machine whose host and device share one memory.

    `use_logits` is called with logits [R, V] float32 and the rows they belong to, at most LOGIT_ROWS at a time.
    """

    def __init__(
        self,
        parts: Sequence[Batch],
        architecture: Architecture,
        weights: WeightStore,
        cache: KVCache,
        ops: Ops,
        use_logits: UseLogits,
    ) -> None:
        self._parts = [PartState(batch) for batch in parts]
        self._architecture = architecture
        self._weights = weights
        self._cache = cache
        self._ops = ops
        self._use_logits = use_logits
        self._loaded: dict[int, Weights] = {}
        self._acts: dict[Stage, Callable[[int, PartState], None]] = {
            Stage.LOAD: self._load,
            Stage.BEFORE_ATTENTION: self._before_attention,
            Stage.OFFLOAD: self._share,
            Stage.STORE_KV: self._store_kv,
            Stage.ATTEND_DECODES: self._attend_decodes,
            Stage.ATTEND_PREFILLS: self._attend_prefills,
            Stage.UPLOAD: self._share,
            Stage.AFTER_ATTENTION: self._after_attention,
            Stage.LOGITS: self._logits,
        }

    def __call__(self, task: Task) -> None:
        self._acts[task.stage](task.layer, self._parts[task.part])

    def _load(self, layer: int, part: PartState) -> None:
        self._loaded[layer] = self._weights.layer(layer)

    def _share(self, layer: int, part: PartState) -> None:
        """Host and device see the same tensors: nothing has to move."""

    def _before_attention(self, layer: int, part: PartState) -> None:
        if layer == 0:
            part.x = self._architecture.embed(self._ops, self._weights.resident, part.batch.token_ids)
        part.q, part.k, part.v = self._architecture.before_attention(
            self._ops, layer, self._loaded[layer], part.x, part.batch.positions
        )
        part.attended = []

    def _store_kv(self, layer: int, part: PartState) -> None:
        self._ops.write_kv(part.k, part.v, self._cache.layers[layer], part.batch.slots)

    def _attend_decodes(self, layer: int, part: PartState) -> None:
        self._attend(layer, part, 0, part.batch.decodes)

    def _attend_prefills(self, layer: int, part: PartState) -> None:
        self._attend(layer, part, part.batch.decodes, len(part.batch.chunks))

    def _attend(self, layer: int, part: PartState, begin: int, end: int) -> None:
        config = self._architecture.config.layers[layer].attention
        starts = part.batch.attention.starts
        q = part.q[int(starts[begin]) : int(starts[end])]
        rows = select_rows(part.batch.attention, begin, end)
        part.attended.append(self._ops.attention(q, self._cache.layers[layer], rows, config.scale, config.window))

    def _after_attention(self, layer: int, part: PartState) -> None:
        attended = part.attended[0] if len(part.attended) == 1 else torch.cat(part.attended)
        part.x = self._architecture.after_attention(self._ops, layer, self._loaded[layer], part.x, attended)

    def _logits(self, layer: int, part: PartState) -> None:
        wanted = part.batch.logit_rows
        for begin in range(0, len(wanted), LOGIT_ROWS):
            rows = wanted[begin : begin + LOGIT_ROWS]
            x = part.x[torch.tensor([row.row for row in rows])]
            self._use_logits(self._architecture.logits(self._ops, self._weights.resident, x), rows)
