"""Which layer's weights lie in which slot of a ring, the device's or the host's, and how much of them has come."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence


class Slot:
    """Room for what one layer streams: its occupant, which chunks and experts of it are there, and its readers."""

    def __init__(self) -> None:
        self.layer: int | None = None
        self.chunks: set[int] = set()
        self.experts: set[int] = set()
        self.readers = 0


class Ring:
    """The n-th of the layers that stream uses slot n modulo `slots`; `chunks` are those of a layer that is whole.

    Loads come from one thread and uses from another. What a use finds missing, and a load that would overwrite what is
    being used, is a bug of the order of tasks, and an AssertionError.
    """

    def __init__(self, streamed: Sequence[int], slots: int) -> None:
        self._slots = [Slot() for _ in range(min(slots, len(streamed)))]
        self._by_layer = {layer: self._slots[i % slots] for i, layer in enumerate(streamed)}
        self._index = {layer: i % slots for i, layer in enumerate(streamed)}
        self._lock = threading.Lock()

    def index(self, layer: int) -> int:
        """The slot of a layer that streams."""
        return self._index[layer]

    def chunks(self, layer: int) -> set[int]:
        """The chunks of a layer that are in its slot."""
        slot = self._by_layer[layer]
        return slot.chunks if slot.layer == layer else set()

    def experts(self, layer: int) -> frozenset[int]:
        """The experts of a layer that have come to its slot one by one."""
        slot = self._by_layer[layer]
        return frozenset(slot.experts.copy()) if slot.layer == layer else frozenset()

    def claim(self, layer: int) -> Slot:
        """The layer's slot, to load into; what another layer had there is gone."""
        slot = self._by_layer[layer]
        with self._lock:
            if slot.layer != layer:
                assert not slot.readers, f"layer {layer} would overwrite layer {slot.layer}, which is in use"
                slot.layer, slot.chunks, slot.experts = layer, set(), set()
        return slot

    @contextlib.contextmanager
    def using(self, layer: int, chunks: Iterable[int], experts: Iterable[int] = ()) -> Iterator[None]:
        """Hold the layer in its slot; all of `chunks`, and `experts` by chunk or one by one, must be there."""
        slot = self._by_layer[layer]
        with self._lock:
            assert slot.layer == layer, f"layer {layer} is not in its ring slot, layer {slot.layer} is"
            missing = set(chunks) - slot.chunks
            assert not missing, f"chunks {sorted(missing)} of layer {layer} have not been loaded"
            absent = set(experts) - slot.experts
            assert not absent, f"experts {sorted(absent)} of layer {layer} have not been loaded"
            slot.readers += 1
        try:
            yield
        finally:
            with self._lock:
                slot.readers -= 1
