"""The device's side of memory, as the pipeline sees it, and the simplest one: the host's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from moelens.cost.work import brings_routed
from moelens.cost.workload import StepShape
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Weights
from moelens.models.config import GQA, ModelConfig
from moelens.ops.interface import AttentionRows, KVLayer, Ops
from moelens.pipeline.task import Experts, LayerLoad


@dataclass(frozen=True)
class Place:
    """Where a part's tensor of one name lands; what was there before is overwritten. `room_bytes` are kept for it where
    larger ones may come in the same step."""

    part: int
    name: str
    room_bytes: int = 0


class DivideRows(Protocol):
    """Decides by cost which rows of a layer the host finishes, where all of its weights lie."""

    def pays(self, layer: int, shape: StepShape) -> bool:
        """Whether a step of `shape` should wait for the layer's routes, and the host finish some of its rows."""

    def rows_of_host(self, layer: int, ids: torch.Tensor, present: Set[int], beside: StepShape) -> Sequence[int]:
        """Of the rows of ids [T, A]; `present` experts need not be brought, and the host attends for `beside` too."""


class DeviceMemory(Protocol):
    """Weights, and the tensors that pass between host and device.

    Views of weights are valid inside their `with` only. Raises CapacityError where something does not fit.
    """

    @property
    def ops(self) -> Ops:
        """The device's."""

    @property
    def resident(self) -> Weights:
        """Embedding, final norm and head."""

    @property
    def is_host(self) -> bool:
        """Whether host and device see the same memory, so that what one makes lies where the other reads it."""

    def begin_step(self, shape: StepShape) -> tuple[LayerLoad, ...]:
        """How each layer's weights come in a step of `shape`; the places of the step before are free again."""

    def read(self, layer: int) -> int:
        """Bring the experts of a layer that lies on disk to the host, unless they are there; returns bytes read."""

    def read_experts(self, layer: int, ids: torch.Tensor) -> int:
        """Bring the experts in ids of such a layer to the host; returns bytes read."""

    def load(self, layer: int, chunk: int) -> int:
        """Bring a layer's front (chunk 0) or a chunk of its experts (1 …), unless it is there; returns bytes moved."""

    def load_experts(self, layer: int, ids: torch.Tensor) -> int:
        """Bring the experts in ids, int32 on the host, that are not there; returns bytes moved."""

    def divides(self, layer: int) -> bool:
        """Whether the host may finish rows of the layer in this step."""

    def rows_of_host(self, layer: int, ids: torch.Tensor, beside: StepShape) -> Sequence[int]:
        """Which rows of ids [T, A], on the host, it finishes; it attends for rows of `beside` meanwhile."""

    def host_weights(self, layer: int) -> Weights:
        """All of a layer where the host's ops can use it."""

    def using_front(self, layer: int) -> AbstractContextManager[Weights]:
        """What a layer needs before its routed experts."""

    def using(self, layer: int) -> AbstractContextManager[Weights]:
        """All of a layer."""

    def using_experts(self, layer: int, ids: torch.Tensor) -> AbstractContextManager[Weights]:
        """A layer of which only the experts in ids may be read."""

    def to_device(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """A host tensor, contiguous, on the device; itself where both see the same memory."""

    def to_host(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """A device tensor, contiguous, on the host; itself where both see the same memory."""

    def attend_fresh(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rows: AttentionRows,
        cache: KVLayer,
        attention: GQA,
    ) -> torch.Tensor:
        """Attention of rows that see no keys but those of k and v; q [T, Q, D], k and v [T, K, D] -> [T, Q, D].

        `cache` is the host's, in which k and v are stored already where host and device are one; there, what was
        attended takes the place of q.
        """


def chosen_experts(ids: torch.Tensor) -> set[int]:
    """The experts that rows go to."""
    return set(ids.flatten().tolist())


class SharedMemory:
    """Host and device are one: nothing moves, and every layer's weights are used where they lie, or are read to."""

    def __init__(self, weights: WeightStore, ops: Ops, config: ModelConfig) -> None:
        self.ops = ops
        self.is_host = True
        self.resident = weights.resident
        self._weights = weights
        self._config = config
        self._nothing_to_load = (LayerLoad(),) * len(config.layers)
        self._kept = [contextlib.nullcontext(weights.layer(layer)) for layer in range(len(config.layers))]

    def begin_step(self, shape: StepShape) -> tuple[LayerLoad, ...]:
        if not self._weights.disk_layers:
            return self._nothing_to_load
        return tuple(self._load_of(layer, shape.tokens) for layer in range(len(self._config.layers)))

    def _load_of(self, layer: int, tokens: int) -> LayerLoad:
        if layer not in self._weights.disk_layers:
            return LayerLoad()
        few = brings_routed(self._config.layers[layer].ffn, tokens)
        return LayerLoad(experts=Experts.ROUTED if few else Experts.RESIDENT, from_disk=True)

    def read(self, layer: int) -> int:
        return self._weights.read(layer)

    def read_experts(self, layer: int, ids: torch.Tensor) -> int:
        return self._weights.read_experts(layer, chosen_experts(ids))

    def load(self, layer: int, chunk: int) -> int:
        raise AssertionError("all weights are where they are used")

    def load_experts(self, layer: int, ids: torch.Tensor) -> int:
        return 0  # they were read to where they are used

    def using_front(self, layer: int) -> AbstractContextManager[Weights]:
        return self._kept[layer]

    def divides(self, layer: int) -> bool:
        return False

    def rows_of_host(self, layer: int, ids: torch.Tensor, beside: StepShape) -> Sequence[int]:
        raise AssertionError("the host does all")

    def host_weights(self, layer: int) -> Weights:
        return self._weights.layer(layer)

    def using(self, layer: int) -> AbstractContextManager[Weights]:
        return self._using_read(layer) if layer in self._weights.disk_layers else self._kept[layer]

    @contextlib.contextmanager
    def _using_read(self, layer: int) -> Iterator[Weights]:
        with self._weights.using(layer):
            yield self._weights.layer(layer)

    @contextlib.contextmanager
    def using_experts(self, layer: int, ids: torch.Tensor) -> Iterator[Weights]:
        with self._weights.using_experts(layer, chosen_experts(ids)):
            yield self._weights.layer(layer)

    def to_device(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        return tensor

    def to_host(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        return tensor

    def attend_fresh(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rows: AttentionRows,
        cache: KVLayer,
        attention: GQA,
    ) -> torch.Tensor:
        return self.ops.attention(q, cache, rows, attention.scale, attention.window, out=q)
