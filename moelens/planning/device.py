"""The plan of a user who sets little, for a device with a memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moelens.cost.footprint import activation_bytes
from moelens.errors import CapacityError
from moelens.models.config import ModelConfig
from moelens.plan import Placement, Plan, Streaming
from moelens.planning.default import Limits
from moelens.planning.placement import DeviceNeeds, LayerBytes, place

MOST_PARTS = 3  # of a step: while the host attends for one, the device works for another; a fourth gained nothing
RING_LAYERS = 2
CHUNK_BYTES = 100_000_000  # enough for a link's full rate, and little enough for activations to wait for
LEAST_CHUNKS = 8  # of a layer: attended rows wait for one chunk, so that is what may be lost of a layer's time


@dataclass(frozen=True)
class DeviceSizes:
    """A device's memory, and what it would hold of a model: bytes of each layer, of the weights that every step uses,
    and of transfers by the plan. With `same_bits` it computes as the host does, bit by bit."""

    memory_bytes: int
    layers: Sequence[LayerBytes]
    resident: int
    transfers: Callable[[Plan], int]
    same_bits: bool = False


def for_device(plan: Plan, sizes: DeviceSizes, streaming: Streaming) -> Plan:
    """`plan` in parts, with weights that stream in chunks, and with all that the user fixed of it."""
    block = max(layer.block for layer in sizes.layers)
    chunks = max(LEAST_CHUNKS, -(-block // CHUNK_BYTES))
    usual: dict[str, Any] = {
        "parts": MOST_PARTS,
        "ring_layers": RING_LAYERS,
        "load_chunks": chunks,
        "experts_on_host": sizes.same_bits,
    }
    return replace(plan, choose_parts=streaming.parts is None, **(usual | streaming.fixed))


def fit(plan: Plan, config: ModelConfig, sizes: DeviceSizes, limits: Limits) -> tuple[Plan, Placement]:
    """`plan`, or with as many rows in a step (to a 32nd) as the device's memory allows beside a ring of layers.

    Raises CapacityError when it is too small for what `limits` fix.
    """

    def of(rows: int) -> tuple[Plan, Placement]:
        smaller = replace(plan, step_tokens=rows, max_requests=min(plan.max_requests, rows))
        return smaller, placed(smaller, config, sizes)

    low, high = limits.step_tokens or limits.max_requests or 1, plan.step_tokens
    try:
        return of(high)
    except CapacityError:
        found = of(low)
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        try:
            found, low = of(middle), middle
        except CapacityError:
            high = middle
    return found


def placed(plan: Plan, config: ModelConfig, sizes: DeviceSizes) -> Placement:
    """What lies where under a plan. Raises CapacityError when it can't."""
    needs = DeviceNeeds(sizes.resident, activation_bytes(config, plan.step_tokens), sizes.transfers(plan))
    return place(sizes.layers, needs, plan.ring_layers, sizes.memory_bytes, plan.resident_layers)
