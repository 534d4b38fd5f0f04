"""Where each tensor of a slab lies: one layer's weights (or the resident ones), contiguous and in the ops' order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from moelens.memory.arena import align
from moelens.models.architecture import Form, TensorSpec, Weights
from moelens.ops.interface import ExpertMatrices, Matrix, Ops

ENTRY_ALIGNMENT = 256  # bytes; what device copies like best, and a multiple of every vector width


class Viewable(Protocol):
    """Memory that tensors may be views of."""

    def view(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor over the bytes from `offset` on."""


@dataclass(frozen=True)
class Entry:
    """One stored tensor: `offset` in bytes from the slab's begin; `shape` in storage order, `logical` as the spec's."""

    name: str
    form: Form
    offset: int
    shape: tuple[int, ...]
    logical: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class SlabLayout:
    """The entries of a slab, in the order of its `TensorSpec`s, and its size (a multiple of the entries' alignment)."""

    entries: tuple[Entry, ...]
    nbytes: int

    @classmethod
    def of(cls, specs: Sequence[TensorSpec], ops: Ops, dtype: torch.dtype) -> SlabLayout:
        """The layout that `ops` want for `specs` of a model in `dtype`, every entry aligned to 256 bytes."""
        entries: list[Entry] = []
        offset = 0
        for spec in specs:
            kept = spec.dtype or dtype
            entry = Entry(spec.name, spec.form, offset, _storage_shape(spec, ops, kept), spec.shape, kept)
            entries.append(entry)
            offset = align(offset + entry.nbytes, ENTRY_ALIGNMENT)
        return cls(tuple(entries), offset)

    @property
    def front(self) -> SlabLayout:
        """What lies before the routed experts, or before the dense block."""
        end = min((entry.offset for entry in self.entries if is_block(entry.name)), default=self.nbytes)
        return SlabLayout(tuple(entry for entry in self.entries if not is_block(entry.name)), end)

    @property
    def block(self) -> SlabLayout:
        """The routed experts or the dense block, which lie last; offsets count from its own begin."""
        begin = self.front.nbytes
        entries = tuple(entry for entry in self.entries if is_block(entry.name))
        assert all(entry.offset < begin for entry in self.front.entries), "something lies behind the experts"
        return SlabLayout(tuple(replace(e, offset=e.offset - begin) for e in entries), self.nbytes - begin)

    def storages(self, arena: Viewable, base: int) -> tuple[torch.Tensor, ...]:
        """Each entry's storage in the slab that begins at byte `base` of `arena`."""
        return tuple(arena.view(base + entry.offset, entry.dtype, entry.shape) for entry in self.entries)

    def view(self, arena: Viewable, base: int) -> Weights:
        """The slab that begins at byte `base` of `arena`, as the ops take it.

        A GATE_UP and a DOWN entry of the same name, but for a last ".gate_up" and ".down", are one `ExpertMatrices`
        under that name.
        """
        plain: dict[str, torch.Tensor] = {}
        matrix: dict[str, Matrix] = {}
        gate_up: dict[str, tuple[Entry, torch.Tensor]] = {}
        down: dict[str, tuple[Entry, torch.Tensor]] = {}
        for entry, storage in zip(self.entries, self.storages(arena, base), strict=True):
            if entry.form is Form.PLAIN:
                plain[entry.name] = storage
            elif entry.form is Form.MATRIX:
                matrix[entry.name] = Matrix(storage, *entry.logical)
            elif entry.form is Form.GATE_UP:
                gate_up[entry.name.removesuffix(".gate_up")] = (entry, storage)
            else:
                down[entry.name.removesuffix(".down")] = (entry, storage)
        assert gate_up.keys() == down.keys(), f"gate_up {sorted(gate_up)} and down {sorted(down)} do not pair"
        experts = {name: _experts(*gate_up[name], *down[name]) for name in gate_up}
        assert len(plain) + len(matrix) + 2 * len(experts) == len(self.entries), "two tensors of one name"
        return Weights(plain, matrix, experts)


def is_block(name: str) -> bool:
    """Whether a tensor is one of the routed experts' or the dense block's."""
    return name.rpartition(".")[0] in ("experts", "dense")


def joined(first: Weights, second: Weights) -> Weights:
    """What two layouts hold of one layer."""
    return Weights(
        {**first.plain, **second.plain}, {**first.matrix, **second.matrix}, {**first.experts, **second.experts}
    )


def _storage_shape(spec: TensorSpec, ops: Ops, dtype: torch.dtype) -> tuple[int, ...]:
    if spec.form is Form.PLAIN:
        return spec.shape
    if spec.form is Form.MATRIX:
        rows, columns = spec.shape
        return ops.matrix_shape(rows, columns, dtype)
    if spec.form is Form.GATE_UP:
        experts, two, width, columns = spec.shape
        assert two == 2
        return (experts, *ops.gate_up_shape(width, columns, dtype))
    experts, rows, width = spec.shape
    return (experts, *ops.down_shape(rows, width, dtype))


def _experts(gate_up: Entry, gate_up_storage: torch.Tensor, down: Entry, down_storage: torch.Tensor) -> ExpertMatrices:
    experts, hidden, width = down.logical
    assert gate_up.logical == (experts, 2, width, hidden), f"{gate_up.logical} and {down.logical} do not fit together"
    return ExpertMatrices(gate_up_storage, down_storage, experts, width, hidden)
