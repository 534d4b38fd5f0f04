"""A device with a memory of its own: weights that stay, a ring that others stream through, room for transfers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from moelens.cost.division import MOST_ROWS
from moelens.cost.work import RESIDUAL_BYTES, brings_routed
from moelens.cost.workload import StepShape
from moelens.errors import CapacityError
from moelens.memory.arena import align
from moelens.memory.device import DivideRows, Place, chosen_experts
from moelens.memory.layout import ENTRY_ALIGNMENT, joined
from moelens.memory.ring import Ring, Slot
from moelens.memory.scratch_cache import ScratchCache
from moelens.memory.stores import ArenaStore, Store
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Weights
from moelens.models.config import GQA, ModelConfig, MoEFFN
from moelens.ops.interface import AttentionRows, KVLayer, Ops
from moelens.pipeline.task import Experts, LayerLoad
from moelens.plan import Placement, Plan

PLACES = 5  # of a part, for what comes to the device: token ids, positions, attended decodes and resumed, finished


class SeparateMemory:
    """A store of exactly the bytes of `placement` that are not activations, which `ops` get elsewhere.

    `make_store` makes one of so many bytes.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightStore,
        ops: Ops,
        placement: Placement,
        plan: Plan,
        make_store: Callable[[int], Store] = ArenaStore,
        divide: DivideRows | None = None,
    ) -> None:
        self.ops = ops
        self._divide = divide
        self._loads: tuple[LayerLoad, ...] = ()
        self._config = config
        self._weights = weights
        self._placement = placement
        self._chunks = plan.load_chunks
        held = placement.weight_bytes + placement.ring_bytes + placement.transfer_bytes
        self._store = make_store(held)
        self._source = weights.arena.view(0, torch.uint8, (weights.nbytes,))
        self._end = 0
        resident = weights.resident_slab
        self.resident = resident.layout.view(self._store, self._hold(resident.begin, resident.layout.nbytes))
        layers = range(len(config.layers))
        self._streamed = [layer for layer in layers if layer not in placement.layers]
        self._ring = Ring(self._streamed, max(1, placement.ring_layers))
        self._fronts: list[Weights] = []
        self._layers: list[Weights] = []
        ring_begin = self._place_layers()
        self._transfers_begin = ring_begin + placement.ring_bytes
        self._scratch = ScratchCache(config, ops, plan.step_tokens)
        self._scratch.place(self._store, self._transfers_begin)
        self._free = self._transfers_begin + self._scratch.nbytes
        self._places: dict[Place, tuple[int, int]] = {}  # begin and room
        self._host_places: dict[Place, torch.Tensor] = {}

    @property
    def is_host(self) -> bool:
        return False

    # --- weights ------------------------------------------------------------------------------------------------------
    def begin_step(self, shape: StepShape) -> tuple[LayerLoad, ...]:
        """How each layer's weights come; raises nothing, as plans bound the rows of a step."""
        self._places.clear()
        self._free = self._transfers_begin + self._scratch.nbytes
        self._loads = tuple(self._load_of(layer, shape) for layer in range(len(self._config.layers)))
        return self._loads

    def read(self, layer: int) -> int:
        return self._weights.read(layer)

    def read_experts(self, layer: int, ids: torch.Tensor) -> int:
        return self._weights.read_experts(layer, chosen_experts(ids))

    def load(self, layer: int, chunk: int) -> int:
        slot = self._ring.claim(layer)
        if chunk in slot.chunks:
            return 0
        begin, end = self._chunk(layer, chunk)
        with self._weights.using(layer) if chunk else contextlib.nullcontext():
            self._copy(self._host_offset(layer, chunk > 0) + begin, self._slot_offset(layer) + begin, end - begin)
        slot.chunks.add(chunk)
        return end - begin

    def load_experts(self, layer: int, ids: torch.Tensor) -> int:
        slot = self._ring.claim(layer)
        if self._block_chunks() <= slot.chunks:
            return 0
        wanted = chosen_experts(ids) - slot.experts
        with self._weights.using_experts(layer, wanted):
            return sum(self._load_expert(layer, expert, slot) for expert in sorted(wanted))

    def _load_expert(self, layer: int, expert: int, slot: Slot) -> int:
        layout, moved = self._weights.slab(layer).layout, 0
        host, front = self._host_offset(layer, of_block=True), layout.front.nbytes
        for entry in layout.block.entries:
            stride = entry.nbytes // entry.shape[0]
            offset = front + entry.offset + expert * stride
            self._copy(host + offset, self._slot_offset(layer) + offset, stride)
            moved += stride
        slot.experts.add(expert)
        return moved

    def divides(self, layer: int) -> bool:
        return self._loads[layer].experts is Experts.DIVIDED

    def rows_of_host(self, layer: int, ids: torch.Tensor, beside: StepShape) -> Sequence[int]:
        assert self._divide is not None
        if self._block_chunks() <= self._ring.chunks(layer):
            return ()
        return self._divide.rows_of_host(layer, ids, self._ring.experts(layer), beside)

    def host_weights(self, layer: int) -> Weights:
        return self._weights.layer(layer)

    @contextlib.contextmanager
    def using_front(self, layer: int) -> Iterator[Weights]:
        with self._held(layer, set() if self._placement.fronts else {0}):
            yield self._fronts[layer]

    @contextlib.contextmanager
    def using(self, layer: int) -> Iterator[Weights]:
        front = set() if self._placement.fronts else {0}
        with self._held(layer, front | self._block_chunks()):
            yield self._layers[layer]

    @contextlib.contextmanager
    def using_experts(self, layer: int, ids: torch.Tensor) -> Iterator[Weights]:
        front = set() if self._placement.fronts else {0}
        if layer in self._placement.layers or self._block_chunks() <= self._ring.chunks(layer):
            with self.using(layer) as weights:
                yield weights
            return
        with self._ring.using(layer, front, chosen_experts(ids)):
            yield self._layers[layer]

    # --- transfers ----------------------------------------------------------------------------------------------------
    def to_device(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        """Raises CapacityError when the room for transfers is too small: the step has more rows than were planned."""
        begin, room = self._places.get(place, (0, -1))
        if room < tensor.nbytes:
            room = max(tensor.nbytes, place.room_bytes)
            begin, self._free = self._free, align(self._free + room, ENTRY_ALIGNMENT)
            if self._free > self._store.nbytes:
                raise CapacityError(
                    f"The device has {self._placement.transfer_bytes} bytes for what comes from the host, but "
                    f"{place.name} of part {place.part} makes it {self._free - self._transfers_begin}. Lower "
                    "max_num_batched_tokens."
                )
            self._places[place] = begin, room
        self._store.fill(begin, tensor)
        return self._store.view(begin, tensor.dtype, tuple(tensor.shape))

    def to_host(self, tensor: torch.Tensor, place: Place) -> torch.Tensor:
        buffer = self._host_places.get(place)
        if buffer is None or buffer.nbytes < tensor.nbytes:
            buffer = self._host_places[place] = self._store.host_buffer(tensor.nbytes)
        self._store.fetch(tensor, buffer)
        return buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def attend_fresh(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rows: AttentionRows,
        cache: KVLayer,
        attention: GQA,
    ) -> torch.Tensor:
        return self._scratch.attend(q, k, v, rows, attention)

    # --- where things lie ---------------------------------------------------------------------------------------------
    def _place_layers(self) -> int:
        """Bring what stays, and view all layers where they are to lie; returns where the ring begins."""
        fronts, blocks = [], []
        for layer in range(len(self._config.layers)):
            slab = self._weights.slab(layer)
            fronts.append(self._hold(slab.begin, slab.layout.front.nbytes) if self._placement.fronts else None)
            blocks.append(self._hold_block(layer) if layer in self._placement.layers else None)
        self._ring_begin = ring_begin = self._end
        for layer, (front_begin, block_begin) in enumerate(zip(fronts, blocks, strict=True)):
            layout = self._weights.slab(layer).layout
            streamed = self._slot_offset(layer) if block_begin is None else 0
            front_weights = layout.front.view(self._store, streamed if front_begin is None else front_begin)
            block_begin = streamed + layout.front.nbytes if block_begin is None else block_begin
            self._fronts.append(front_weights)
            self._layers.append(joined(front_weights, layout.block.view(self._store, block_begin)))
        return ring_begin

    def _hold(self, source: int, nbytes: int) -> int:
        """Bring bytes of the host's arena to stay; returns where they lie."""
        begin, self._end = self._end, self._end + nbytes
        self._copy(source, begin, nbytes)
        return begin

    def _hold_block(self, layer: int) -> int:
        """Bring a layer's block to stay, from a file if it lies there."""
        slab = self._weights.slab(layer)
        if layer in self._weights.disk_layers:
            self._weights.read(layer)
        with self._weights.using(layer):
            return self._hold(slab.block_begin, slab.layout.block.nbytes)

    def _host_offset(self, layer: int, of_block: bool) -> int:
        """Where a byte at offset 0 of the layer's slab lies on the host, or would if its block lay behind its front."""
        slab = self._weights.slab(layer)
        return slab.block_begin - slab.layout.front.nbytes if of_block else slab.begin

    def _slot_offset(self, layer: int) -> int:
        """Where a byte at offset 0 of the layer's slab lies, or would if the ring held its front."""
        slot = self._ring_begin + self._ring.index(layer) * self._placement.slot_bytes
        return slot - (self._weights.slab(layer).layout.front.nbytes if self._placement.fronts else 0)

    def _copy(self, source: int, target: int, nbytes: int) -> None:
        self._store.fill(target, self._source[source : source + nbytes])

    # --- what a step brings -------------------------------------------------------------------------------------------
    def _load_of(self, layer: int, shape: StepShape) -> LayerLoad:
        if layer in self._placement.layers:
            return LayerLoad()
        experts = Experts.WHOLE
        ffn = self._config.layers[layer].ffn
        from_disk = layer in self._weights.disk_layers
        if self._divide is not None and not from_disk and isinstance(ffn, MoEFFN) and self._divide.pays(layer, shape):
            experts = Experts.DIVIDED
        elif brings_routed(ffn, shape.tokens):
            experts = Experts.ROUTED
        return LayerLoad(not self._placement.fronts, experts, from_disk)

    def _block_chunks(self) -> set[int]:
        return set(range(1, self._chunks + 1))

    def _chunk(self, layer: int, chunk: int) -> tuple[int, int]:
        """Begin and end of a chunk in the layer's slab."""
        layout = self._weights.slab(layer).layout
        front, block = layout.front.nbytes, layout.block.nbytes
        if chunk == 0:
            return 0, front
        begin, end = (align(block * i // self._chunks, ENTRY_ALIGNMENT) for i in (chunk - 1, chunk))
        return front + min(begin, block), front + min(end, block)

    def _held(self, layer: int, chunks: set[int]) -> contextlib.AbstractContextManager[None]:
        if layer in self._placement.layers or not chunks:
            return contextlib.nullcontext()
        return self._ring.using(layer, chunks)


def transfer_bytes(config: ModelConfig, ops: Ops, step_tokens: int, parts: int, *, finished: bool = False) -> int:
    """Room for what comes to the device beside weights, in a step of `step_tokens` rows; a multiple of 256.

    `finished` says that rows which the host has finished may, too.
    """
    widths = {layer.attention.query_heads * layer.attention.head_dim for layer in config.layers}
    row_bytes = 2 * torch.int32.itemsize + sum(widths) * config.dtype.itemsize
    gaps = parts * (PLACES + len(widths)) * ENTRY_ALIGNMENT
    rows_bytes = step_tokens * row_bytes
    if finished:
        rows_bytes += min(step_tokens, MOST_ROWS) * config.hidden * RESIDUAL_BYTES
    return align(rows_bytes, ENTRY_ALIGNMENT) + gaps + ScratchCache(config, ops, step_tokens).nbytes
