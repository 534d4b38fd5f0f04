"""A model's weights in one exact-size arena: the resident slab, then one slab per layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from moelens.memory.arena import Arena
from moelens.memory.layout import SlabLayout
from moelens.models.architecture import Architecture, Weights
from moelens.ops.interface import Ops


@dataclass(frozen=True)
class Slab:
    """Bytes [begin, end) of the store's arena, and how they are laid out."""

    layout: SlabLayout
    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.layout.nbytes


class WeightStore:
    """Every slab of a model; all zeros until something fills `storages`."""

    def __init__(self, arena: Arena, resident: Slab, layers: tuple[Slab, ...]) -> None:
        self.arena = arena
        self.resident_slab = resident
        self._slabs = layers
        self.resident: Weights = resident.layout.view(arena, resident.begin)
        self._layers = tuple(slab.layout.view(arena, slab.begin) for slab in layers)

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
        return slab.layout.storages(self.arena, slab.begin)


def private_arena(nbytes: int) -> Arena:
    """Room for weights that only this process has. Raises CapacityError when there is none."""
    return Arena(nbytes, purpose="the model's weights")


def store_bytes(architecture: Architecture, ops: Ops) -> int:
    """What `allocate` takes."""
    slabs = (architecture.resident_tensors, *architecture.layer_tensors)
    return sum(SlabLayout.of(specs, ops, architecture.config.dtype).nbytes for specs in slabs)


def allocate(architecture: Architecture, ops: Ops, take: Callable[[int], Arena] = private_arena) -> WeightStore:
    """Room for `architecture`'s weights in the storage order of `ops`; `take` gives an arena of so many bytes.

    Raises what `take` raises.
    """
    dtype = architecture.config.dtype
    resident = Slab(SlabLayout.of(architecture.resident_tensors, ops, dtype), 0)
    layers: list[Slab] = []
    end = resident.end
    for specs in architecture.layer_tensors:
        layers.append(Slab(SlabLayout.of(specs, ops, dtype), end))
        end = layers[-1].end
    return WeightStore(take(end), resident, tuple(layers))
