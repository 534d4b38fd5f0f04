"""A model's weights in one exact-size arena: the resident slab, one slab per layer, and room for what is on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from moelens.memory.arena import Arena
from moelens.memory.layout import SlabLayout, joined
from moelens.memory.ring import Ring
from moelens.models.architecture import Architecture, Weights
from moelens.ops.interface import Ops

WHOLE = frozenset({0})  # the one chunk of a layer that is read from a file


@dataclass(frozen=True)
class Slab:
    """Where a layer's front lies in the store's arena, and its block: behind it, or in a slot that others use too."""

    layout: SlabLayout
    begin: int
    slot_begin: int | None = None

    @property
    def block_begin(self) -> int:
        return self.begin + self.layout.front.nbytes if self.slot_begin is None else self.slot_begin

    @property
    def end(self) -> int:
        """Of what is this layer's alone."""
        return self.begin + (self.layout.nbytes if self.slot_begin is None else self.layout.front.nbytes)

    def storages(self, arena: Arena) -> tuple[torch.Tensor, ...]:
        """The storage of each tensor, in the order of its specs."""
        layout = self.layout
        return (*layout.front.storages(arena, self.begin), *layout.block.storages(arena, self.block_begin))

    def view(self, arena: Arena) -> Weights:
        """The tensors as the ops take them."""
        layout = self.layout
        return joined(layout.front.view(arena, self.begin), layout.block.view(arena, self.block_begin))


class BlockReader(Protocol):
    """Fills slots from files. Raises CheckpointError when it can't."""

    def read(self, layer: int) -> int:
        """All of a layer's block; returns bytes read."""

    def read_experts(self, layer: int, experts: Iterable[int]) -> int:
        """Some of its experts; returns bytes read."""

    def bytes_per_second(self) -> float:
        """At what rate, found by reading some; slots' contents are lost."""


class WeightStore:
    """Every slab of a model; all zeros until something fills `storages`.

    The blocks of `disk_layers` are in files: `read` and `read_experts`, from one thread, bring them to the
    `disk_ring_layers` slots that they take turns in, and `using` and `using_experts` keep them there.
    """

    def __init__(
        self,
        arena: Arena,
        resident: Slab,
        layers: tuple[Slab, ...],
        disk_layers: Sequence[int] = (),
        disk_ring_layers: int = 1,
    ) -> None:
        self.arena = arena
        self.resident_slab = resident
        self.disk_layers = frozenset(disk_layers)
        self._slabs = layers
        self._ring = Ring(disk_layers, disk_ring_layers)
        self._reader: BlockReader | None = None
        self.read_bytes_per_second: float | None = None  # as it was measured
        self.resident: Weights = resident.view(arena)
        self._layers = tuple(slab.view(arena) for slab in layers)

    @property
    def nbytes(self) -> int:
        return self.arena.nbytes

    def layer(self, layer: int) -> Weights:
        """Layer `layer`'s weights, where they lie."""
        return self._layers[layer]

    @property
    def slabs(self) -> tuple[Slab, ...]:
        """All slabs, in the order of the arena."""
        return (self.resident_slab, *self._slabs)

    def slab(self, layer: int) -> Slab:
        """Where layer `layer`'s weights lie in the arena."""
        return self._slabs[layer]

    def storages(self, slab: Slab) -> tuple[torch.Tensor, ...]:
        """The storage of each tensor of `slab`, in the order of its specs."""
        return slab.storages(self.arena)

    # --- what is on disk ----------------------------------------------------------------------------------------------
    def read_from(self, reader: BlockReader) -> None:
        """Read the blocks of the layers on disk by `reader`."""
        self._reader = reader

    def measure_reads(self) -> float:
        """Bytes per second at which layers on disk are read; before any is used."""
        assert self._reader is not None, "nothing reads the layers on disk"
        self.read_bytes_per_second = self._reader.bytes_per_second()
        return self.read_bytes_per_second

    def read(self, layer: int) -> int:
        """Bring a layer on disk to its slot, unless it is there; returns bytes read."""
        slot = self._ring.claim(layer)
        if slot.chunks == WHOLE:
            return 0
        assert self._reader is not None, "nothing reads the layers on disk"
        nbytes = self._reader.read(layer)
        slot.chunks |= WHOLE
        return nbytes

    def read_experts(self, layer: int, experts: set[int]) -> int:
        """Bring those experts of a layer on disk that are not in its slot; returns bytes read."""
        slot = self._ring.claim(layer)
        wanted = set() if slot.chunks == WHOLE else experts - slot.experts
        if not wanted:
            return 0
        assert self._reader is not None, "nothing reads the layers on disk"
        nbytes = self._reader.read_experts(layer, sorted(wanted))
        slot.experts |= wanted
        return nbytes

    def using(self, layer: int) -> AbstractContextManager[None]:
        """Keep all of a layer where it is; one on disk must have been read."""
        return self._ring.using(layer, WHOLE) if layer in self.disk_layers else contextlib.nullcontext()

    def using_experts(self, layer: int, experts: set[int]) -> AbstractContextManager[None]:
        """Keep a layer where it is of which only some experts are used; on disk, these must have been read."""
        if layer not in self.disk_layers or self._ring.chunks(layer) == WHOLE:
            return self.using(layer)
        return self._ring.using(layer, (), experts)


def private_arena(nbytes: int) -> Arena:
    """Room for weights that only this process has. Raises CapacityError when there is none."""
    return Arena(nbytes, purpose="the model's weights")


def allocate(
    architecture: Architecture,
    ops: Ops,
    take: Callable[[int], Arena] = private_arena,
    disk_layers: Sequence[int] = (),
    disk_ring_layers: int = 1,
) -> WeightStore:
    """Room for `architecture`'s weights in the storage order of `ops`; `take` gives an arena of so many bytes.

    Of the blocks of `disk_layers`, for as many at once as `disk_ring_layers` says. Raises what `take` raises.
    """
    dtype = architecture.config.dtype
    resident = Slab(SlabLayout.of(architecture.resident_tensors, ops, dtype), 0)
    layouts = [SlabLayout.of(specs, ops, dtype) for specs in architecture.layer_tensors]
    slot_bytes = max((layouts[layer].block.nbytes for layer in disk_layers), default=0)
    slots = min(disk_ring_layers, len(disk_layers))
    turns = {layer: turn % slots for turn, layer in enumerate(disk_layers)}
    layers: list[Slab] = []
    end = resident.end + slots * slot_bytes
    for layer, layout in enumerate(layouts):
        slot_begin = resident.end + turns[layer] * slot_bytes if layer in turns else None
        layers.append(Slab(layout, end, slot_begin))
        end = layers[-1].end
    return WeightStore(take(end), resident, tuple(layers), disk_layers, max(1, slots))
