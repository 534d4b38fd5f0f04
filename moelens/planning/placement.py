"""What lies on a device that is too small for the model: whole layers as far as its memory goes, the rest streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moelens.errors import CapacityError, ConfigError
from moelens.plan import Placement


@dataclass(frozen=True)
class LayerBytes:
    """A layer's weights: `front` is what it needs before its routed experts, `block` those or its dense block."""

    front: int
    block: int


@dataclass(frozen=True)
class DeviceNeeds:
    """Bytes that a device has to hold beside the layers: weights that every step uses, activations, transfers."""

    resident: int
    activations: int
    transfers: int


def place(
    layers: Sequence[LayerBytes],
    needs: DeviceNeeds,
    ring_layers: int,
    memory_bytes: int,
    resident_layers: int | None = None,
) -> Placement:
    """The placement that leaves least to stream, or that in which `resident_layers` layers stay whole.

    All layers' fronts come first, as every step uses all of them while it may need few experts; then whole layers,
    spread evenly so that the link never pauses. Raises CapacityError, with the bytes by purpose, when not even the ring
    fits, and ConfigError for more layers than there are.
    """
    if resident_layers is not None and resident_layers > len(layers):
        raise ConfigError(f"resident_layers is {resident_layers}, but the model has {len(layers)} layers: lower it.")
    left = memory_bytes - needs.resident - needs.activations - needs.transfers
    fronts = sum(layer.front for layer in layers)
    blocks = [layer.block for layer in layers]
    counts = range(len(layers), -1, -1) if resident_layers is None else (resident_layers,)
    for chosen in (spread(count, len(layers)) for count in counts):
        held = fronts + sum(blocks[layer] for layer in chosen)
        streamed = [block for layer, block in enumerate(blocks) if layer not in chosen]
        ring, slot = min(ring_layers, len(streamed)), max(streamed, default=0)
        if held + ring * slot <= left:
            return _placement(True, chosen, ring, slot, held, needs)
    if resident_layers:
        purpose = f"{resident_layers} layers that stay, a ring of {ring} others"
        raise CapacityError(_too_small(needs, purpose, held + ring * slot, memory_bytes))
    slot = max(layer.front + layer.block for layer in layers)
    if ring_layers * slot > left:
        raise CapacityError(_too_small(needs, f"a ring of {ring_layers} layers", ring_layers * slot, memory_bytes))
    return _placement(False, frozenset(), ring_layers, slot, 0, needs)


def spread(count: int, of: int) -> frozenset[int]:
    """`count` of the numbers below `of`, at equal distances."""
    return frozenset((2 * i + 1) * of // (2 * count) for i in range(count))


def _placement(
    fronts: bool, layers: frozenset[int], ring_layers: int, slot_bytes: int, weight_bytes: int, needs: DeviceNeeds
) -> Placement:
    return Placement(
        fronts=fronts,
        layers=layers,
        ring_layers=ring_layers,
        slot_bytes=slot_bytes,
        weight_bytes=needs.resident + weight_bytes,
        activation_bytes=needs.activations,
        transfer_bytes=needs.transfers,
    )


def _too_small(needs: DeviceNeeds, weights: str, weight_bytes: int, memory_bytes: int) -> str:
    purposes = {
        "embedding, final norm and head": needs.resident,
        weights: weight_bytes,
        "activations": needs.activations,
        "transfers": needs.transfers,
    }
    table = ", ".join(f"{name} {nbytes / 1e6:.1f} MB" for name, nbytes in purposes.items())
    return (
        f"The device's memory of {memory_bytes / 1e6:.1f} MB can't hold what a step needs: {table}, "
        f"{sum(purposes.values()) / 1e6:.1f} MB in all. Give the device more memory or lower what is fixed of "
        "max_num_batched_tokens, resident_layers and ring_layers."
    )
