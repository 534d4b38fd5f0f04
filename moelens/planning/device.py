"""The plan of a user who sets little, for a device with a memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moelens.cost.footprint import activation_bytes
from moelens.errors import CapacityError
from moelens.models.config import ModelConfig
from moelens.plan import Placement, Plan
from moelens.planning.placement import DeviceNeeds, LayerBytes, place

MOST_PARTS = 3  # of a step: while the host attends for one, the device works for another; a fourth gained nothing
RING_LAYERS = 2
CHUNK_BYTES = 100_000_000  # enough for a link's full rate, and little enough for activations to wait for
LEAST_CHUNKS = 8  # of a layer: attended rows wait for one chunk, so that is what may be lost of a layer's time


@dataclass(frozen=True)
class DeviceSizes:
    """What a device would hold of a model: bytes of each layer, of the weights that every step uses, and of transfers
    by the rows of a step."""

    layers: Sequence[LayerBytes]
    resident: int
    transfers: Callable[[int], int]

    def needs(self, config: ModelConfig, step_tokens: int) -> DeviceNeeds:
        """Beside the layers, in steps of so many rows."""
        return DeviceNeeds(self.resident, activation_bytes(config, step_tokens), self.transfers(step_tokens))


def for_device(plan: Plan, sizes: DeviceSizes) -> Plan:
    """`plan` in parts, with weights that stream in chunks."""
    block = max(layer.block for layer in sizes.layers)
    chunks = max(LEAST_CHUNKS, -(-block // CHUNK_BYTES))
    return replace(plan, parts=MOST_PARTS, choose_parts=True, ring_layers=RING_LAYERS, load_chunks=chunks)


def fit(plan: Plan, config: ModelConfig, sizes: DeviceSizes, memory_bytes: int) -> tuple[Plan, Placement]:
    """`plan` with as many rows in a step, halved from its own, as the device's memory allows beside a ring of layers.

    Raises CapacityError when it is too small for as many rows as there may be requests.
    """
    while True:
        try:
            return plan, fixed(plan, config, sizes, memory_bytes)
        except CapacityError:
            if plan.step_tokens == plan.max_requests:
                raise
        plan = replace(plan, step_tokens=max(plan.max_requests, plan.step_tokens // 2))


def fixed(plan: Plan, config: ModelConfig, sizes: DeviceSizes, memory_bytes: int) -> Placement:
    """What lies where under a plan that is given. Raises CapacityError when it can't."""
    return place(sizes.layers, sizes.needs(config, plan.step_tokens), plan.ring_layers, memory_bytes)
