"""What each task of a step does, on tensors; the same on every machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from moelens.cost.footprint import LOGIT_ROWS
from moelens.cost.workload import StepShape
from moelens.memory.device import DeviceMemory, Place
from moelens.memory.kv_cache import KVCache
from moelens.models.architecture import Architecture, Routed
from moelens.ops.interface import AttentionRows, Ops
from moelens.pipeline.task import Stage, Task
from moelens.schedule.batch import Batch, LogitRow, select_rows


@dataclass(frozen=True)
class Division:
    """Rows [·] int64 that the host finishes and those that the device does (both None: it does all), and the experts
    [·, A] of the latter."""

    of_host: torch.Tensor | None
    of_device: torch.Tensor | None
    ids: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor, host_rows: Collection[int]) -> Division:
        """By the rows of ids [T, A] that the host is to finish."""
        if not host_rows:
            return cls(None, None, ids)
        chosen = torch.zeros(len(ids), dtype=torch.bool)
        chosen[list(host_rows)] = True
        of_device = (~chosen).nonzero().flatten()
        return cls(chosen.nonzero().flatten(), of_device, ids[of_device])


@dataclass(frozen=True)
class Group:
    """The rows of a part that one task attends for, and what they see."""

    rows: slice
    attention: AttentionRows


def _groups(batch: Batch) -> dict[Stage, Group]:
    """By the task that attends for them, in the order of rows; of tasks that there are."""
    starts = batch.attention.starts.tolist()
    groups, begin = {}, 0
    for stage, count in (
        (Stage.ATTEND_DECODES, batch.decodes),
        (Stage.ATTEND_RESUMED, batch.resumed),
        (Stage.ATTEND_PREFILLS, len(batch.chunks) - batch.decodes - batch.resumed),
    ):
        if not count:
            continue
        end = begin + count
        seen = batch.attention if count == len(batch.chunks) else select_rows(batch.attention, begin, end)
        groups[stage] = Group(slice(starts[begin], starts[end]), seen)
        begin = end
    return groups


UseLogits = Callable[[torch.Tensor, Sequence[LogitRow]], None]
# Of a layer, its router's ids [T, A], which may be looked at when the step's tasks are done.
OnRoutes = Callable[[int, torch.Tensor], None]


class PartState:
    """One part's tensors between its tasks.

    On the device: token_ids and positions [T], x [T, H], q [T, Q, D], k and v [T, K, D], routed, and attended [·, Q, D]
    by where the rows were attended for. On the host: the same names with host_, of the rows that it attends for.
    Where host and device see the same memory, what was attended takes the place of q.
    """

    def __init__(self, index: int, batch: Batch) -> None:
        self.index = index
        self.batch = batch
        self.groups = _groups(batch)
        self.token_ids: torch.Tensor
        self.positions: torch.Tensor
        self.x: torch.Tensor
        self.q: torch.Tensor
        self.k: torch.Tensor
        self.v: torch.Tensor
        self.host_q: torch.Tensor
        self.host_k: torch.Tensor
        self.host_v: torch.Tensor
        self.host_attended: list[torch.Tensor] = []
        self.uploaded: list[torch.Tensor] = []
        self.prefilled: list[torch.Tensor] = []
        self.routed: Routed
        self.host_routed: Routed  # of which x, normed and scores are there only where the host may finish rows
        self.division: Division | None = None  # of the layer that the part is in
        self.lock = threading.Lock()
        self.finished: torch.Tensor  # by the host, later on the device
        self.logits: dict[int, torch.Tensor] = {}
        self.host_logits: dict[int, torch.Tensor] = {}

    @property
    def hosted_rows(self) -> slice:
        """Those that see cached keys; they come first."""
        batch = self.batch
        return slice(int(batch.attention.starts[batch.decodes + batch.resumed]))


class Actions:
    """The tasks of one step; called with a task, does it and returns the bytes that it moved to or from the device.

    `ops` are the host's. `use_logits` is called with logits [R, V] float32 on the host and the rows they belong to, at
    most LOGIT_ROWS at a time.
    """

    def __init__(
        self,
        parts: Sequence[Batch],
        architecture: Architecture,
        device: DeviceMemory,
        cache: KVCache,
        ops: Ops,
        use_logits: UseLogits,
    ) -> None:
        self._parts = [PartState(index, batch) for index, batch in enumerate(parts)]
        self._architecture = architecture
        self._device = device
        self._cache = cache
        self._ops = ops
        self._use_logits = use_logits
        self.on_routes: OnRoutes | None = None  # for who counts how rows are shared out among experts
        self._acts: dict[Stage, Callable[[Task, PartState], int | None]] = {
            Stage.INPUT: self._input,
            Stage.BEFORE_ATTENTION: self._before_attention,
            Stage.OFFLOAD: self._offload,
            Stage.STORE_KV: self._store_kv,
            Stage.ATTEND_PREFILLS: self._attend_prefills,
            Stage.ATTEND_DECODES: self._attend_cached,
            Stage.ATTEND_RESUMED: self._attend_cached,
            Stage.UPLOAD: self._upload,
            Stage.AFTER_ATTENTION: self._after_attention,
            Stage.ROUTE: self._route,
            Stage.OFFLOAD_ROUTES: self._offload_routes,
            Stage.READ_EXPERTS: self._read_experts,
            Stage.LOAD_EXPERTS: self._load_experts,
            Stage.FINISH_ROWS: self._finish_rows,
            Stage.UPLOAD_ROWS: self._upload_rows,
            Stage.EXPERTS: self._experts,
            Stage.LOGITS: self._logits,
            Stage.OFFLOAD_LOGITS: self._offload_logits,
            Stage.SAMPLE: self._sample,
        }

    def __call__(self, task: Task) -> int:
        if task.stage is Stage.LOAD:
            return self._device.load(task.layer, task.chunk)
        if task.stage is Stage.READ:
            return self._device.read(task.layer)
        return self._acts[task.stage](task, self._parts[task.part]) or 0

    def release(self) -> None:
        """Let go of the step's tensors; carried tasks may still run."""
        self._parts.clear()

    # --- between host and device --------------------------------------------------------------------------------------
    def _input(self, task: Task, part: PartState) -> int:
        part.token_ids, ids_bytes = self._up(part, "token ids", part.batch.token_ids)
        part.positions, positions_bytes = self._up(part, "positions", part.batch.positions)
        return ids_bytes + positions_bytes

    def _offload(self, task: Task, part: PartState) -> int:
        part.host_attended = []
        if self._device.is_host:
            part.host_q, part.host_k, part.host_v = part.q, part.k, part.v
            return 0
        part.host_k, k_bytes = self._down(part, "k", part.k)
        part.host_v, v_bytes = self._down(part, "v", part.v)
        part.host_q, q_bytes = self._down(part, "q", part.q[part.hosted_rows])
        return k_bytes + v_bytes + q_bytes

    def _upload(self, task: Task, part: PartState) -> int:
        if self._device.is_host:
            return 0
        moved = [self._up(part, f"attended {i}", rows) for i, rows in enumerate(part.host_attended)]
        part.uploaded = [rows for rows, _ in moved]
        return sum(nbytes for _, nbytes in moved)

    def _offload_routes(self, task: Task, part: PartState) -> int:
        routed = part.routed
        assert routed.ids is not None and routed.scores is not None, "a layer without a router is loaded whole"
        part.division = None
        ids, moved = self._down(part, "ids", routed.ids)
        part.host_routed = Routed(ids[:0], ids[:0], ids, None)
        if self._device.divides(task.layer):
            x, x_bytes = self._down(part, "x", routed.x)
            normed, normed_bytes = self._down(part, "normed", routed.normed)
            scores, scores_bytes = self._down(part, "scores", routed.scores)
            part.host_routed = Routed(x, normed, ids, scores)
            moved += x_bytes + normed_bytes + scores_bytes
        return moved

    def _read_experts(self, task: Task, part: PartState) -> int:
        ids = part.host_routed.ids
        assert ids is not None, "a layer without a router is read whole"
        return self._device.read_experts(task.layer, ids)

    def _load_experts(self, task: Task, part: PartState) -> int:
        return self._device.load_experts(task.layer, self._divide(task.layer, part).ids)

    def _upload_rows(self, task: Task, part: PartState) -> int:
        if not len(part.finished):
            return 0
        rows, row_bytes = part.finished, part.finished.element_size() * part.finished.shape[1]
        place = Place(part.index, "finished", part.batch.rows * row_bytes)
        part.finished = self._device.to_device(rows, place)
        return _moved_bytes(rows, part.finished)

    def _offload_logits(self, task: Task, part: PartState) -> int:
        logits, nbytes = self._down(part, f"logits {task.chunk % 2}", part.logits.pop(task.chunk))
        part.host_logits[task.chunk] = logits
        return nbytes

    def _up(self, part: PartState, name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        copy = self._device.to_device(tensor, Place(part.index, name))
        return copy, _moved_bytes(tensor, copy)

    def _down(self, part: PartState, name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        copy = self._device.to_host(tensor, Place(part.index, name))
        return copy, _moved_bytes(tensor, copy)

    # --- on the device ------------------------------------------------------------------------------------------------
    def _before_attention(self, task: Task, part: PartState) -> None:
        ops, layer = self._device.ops, task.layer
        if layer == 0:
            part.x = self._architecture.embed(ops, self._device.resident, part.token_ids)
        with self._device.using_front(layer) as weights:
            part.q, part.k, part.v = self._architecture.before_attention(ops, layer, weights, part.x, part.positions)
        part.uploaded, part.prefilled = [], []

    def _attend_prefills(self, task: Task, part: PartState) -> None:
        attention = self._architecture.config.layers[task.layer].attention
        group = part.groups[task.stage]
        part.prefilled = [
            self._device.attend_fresh(
                *(part.q[group.rows], part.k[group.rows], part.v[group.rows]),
                *(group.attention, self._cache.layers[task.layer], attention),
            )
        ]

    def _after_attention(self, task: Task, part: PartState) -> None:
        ops, finish = self._device.ops, self._architecture.after_attention
        with self._device.using(task.layer) as weights:
            routed = finish.route(ops, task.layer, weights, *self._rows_to_finish(task.layer, part))
            self._tell_routes(task.layer, routed)
            part.x = finish.experts(ops, task.layer, weights, routed)

    def _route(self, task: Task, part: PartState) -> None:
        with self._device.using_front(task.layer) as weights:
            part.routed = self._architecture.after_attention.route(
                self._device.ops, task.layer, weights, *self._rows_to_finish(task.layer, part)
            )
        self._tell_routes(task.layer, part.routed)

    def _tell_routes(self, layer: int, routed: Routed) -> None:
        if self.on_routes is not None and routed.ids is not None:
            self.on_routes(layer, routed.ids)

    def _experts(self, task: Task, part: PartState) -> None:
        division, routed = self._divide(task.layer, part), part.routed
        if division.of_host is None or division.of_device is None:
            part.x = self._device_experts(task.layer, division, routed)
            return
        x = torch.empty_like(routed.x)
        of_device = division.of_device.to(x.device)
        x[division.of_host.to(x.device)] = part.finished
        if len(of_device):
            x[of_device] = self._device_experts(task.layer, division, _select(routed, of_device))
        part.x = x

    def _device_experts(self, layer: int, division: Division, routed: Routed) -> torch.Tensor:
        with self._device.using_experts(layer, division.ids) as weights:
            return self._architecture.after_attention.experts(self._device.ops, layer, weights, routed)

    def _logits(self, task: Task, part: PartState) -> None:
        begin = task.chunk * LOGIT_ROWS
        x = part.x[begin : begin + LOGIT_ROWS]
        part.logits[task.chunk] = self._architecture.logits(self._device.ops, self._device.resident, x)

    def _rows_to_finish(self, layer: int, part: PartState) -> tuple[torch.Tensor, torch.Tensor]:
        """x and what was attended of all rows; in the last layer of those that give logits: the others are done when
        their keys and values are stored."""
        x, attended = part.x, part.q if self._device.is_host else self._attended(part)
        if layer + 1 < len(self._architecture.config.layers) or len(part.batch.logit_rows) == len(x):
            return x, attended
        rows = torch.tensor([row.row for row in part.batch.logit_rows], dtype=torch.int32).to(x.device)
        return self._device.ops.embed(x, rows), self._device.ops.embed(attended.flatten(1), rows)

    def _attended(self, part: PartState) -> torch.Tensor:
        """Of all rows, in their order: decodes, resumed prompts, fresh prompts."""
        pieces = [*part.uploaded, *part.prefilled]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    # --- on the host --------------------------------------------------------------------------------------------------
    def _divide(self, layer: int, part: PartState) -> Division:
        """Which of a part's rows the host finishes: whoever needs it first decides."""
        ids = part.host_routed.ids
        assert ids is not None
        with part.lock:
            if part.division is None:
                beside = part.batch.shape if len(self._parts) > 1 else StepShape()
                chosen = self._device.rows_of_host(layer, ids, beside) if self._device.divides(layer) else ()
                part.division = Division.of(ids, chosen)
            return part.division

    def _finish_rows(self, task: Task, part: PartState) -> None:
        division = self._divide(task.layer, part)
        part.finished = part.host_routed.x[:0]
        if division.of_host is not None:
            routed = _select(part.host_routed, division.of_host)
            weights = self._device.host_weights(task.layer)
            part.finished = self._architecture.after_attention.experts(self._ops, task.layer, weights, routed)

    def _store_kv(self, task: Task, part: PartState) -> None:
        self._ops.write_kv(part.host_k, part.host_v, self._cache.layers[task.layer], part.batch.slots)

    def _attend_cached(self, task: Task, part: PartState) -> None:
        config = self._architecture.config.layers[task.layer].attention
        group, cache = part.groups[task.stage], self._cache.layers[task.layer]
        q = part.host_q[group.rows]
        attended = self._ops.attention(
            *(q, cache, group.attention, config.scale, config.window), out=q if self._device.is_host else None
        )
        part.host_attended.append(attended)

    def _sample(self, task: Task, part: PartState) -> None:
        self._use_logits(part.host_logits.pop(task.chunk), _group(part, task))


def _select(routed: Routed, rows: torch.Tensor) -> Routed:
    assert routed.ids is not None and routed.scores is not None
    return Routed(routed.x[rows], routed.normed[rows], routed.ids[rows], routed.scores[rows])


def _group(part: PartState, task: Task) -> tuple[LogitRow, ...]:
    """The rows of one chunk of LOGITS."""
    return part.batch.logit_rows[task.chunk * LOGIT_ROWS : (task.chunk + 1) * LOGIT_ROWS]


def _moved_bytes(source: torch.Tensor, copy: torch.Tensor) -> int:
    """Nothing where host and device see the same tensor."""
    return 0 if copy is source else copy.nbytes
