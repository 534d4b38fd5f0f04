"""Which layers' experts stay on disk when the host's memory does not hold all weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from moelens.cost.work import expert_weight_bytes, layer_weight_bytes
from moelens.models.config import ModelConfig
from moelens.planning.placement import LayerBytes, spread

DISK_RING_LAYERS = 2  # one is read while another is used


def layer_bytes(config: ModelConfig) -> tuple[LayerBytes, ...]:
    """Of each layer, by the config alone."""
    blocks = [expert_weight_bytes(config, layer) for layer in range(len(config.layers))]
    return tuple(LayerBytes(layer_weight_bytes(config, layer) - block, block) for layer, block in enumerate(blocks))


def disk_layers(
    layers: Sequence[LayerBytes], resident_bytes: int, weight_bytes: int, ring_layers: int = DISK_RING_LAYERS
) -> tuple[int, ...] | None:
    """The fewest layers whose blocks must stay on disk for weights to take `weight_bytes` of the host's memory at most.

    They are spread evenly, so that the disk never pauses. None: not even a ring fits.
    """
    for count in range(len(layers) + 1):
        chosen = tuple(sorted(spread(count, len(layers))))
        if host_weight_bytes(layers, resident_bytes, chosen, ring_layers) <= weight_bytes:
            return chosen
    return None


def host_weight_bytes(
    layers: Sequence[LayerBytes],
    resident_bytes: int,
    chosen: Collection[int],
    ring_layers: int = DISK_RING_LAYERS,
) -> int:
    """What weights take of the host's memory when the blocks of the `chosen` layers pass through a ring."""
    held = sum(one.front + (0 if layer in chosen else one.block) for layer, one in enumerate(layers))
    slots = min(ring_layers, len(chosen)) * max((layers[layer].block for layer in chosen), default=0)
    return resident_bytes + held + slots


def read_layers(chosen: Sequence[int], ring_layers: int = DISK_RING_LAYERS) -> list[int]:
    """Those of the `chosen` layers that are read in every pass: all that share a slot of the ring with another."""
    slots = [chosen[slot::ring_layers] for slot in range(ring_layers)]
    return sorted(layer for sharing in slots if len(sharing) > 1 for layer in sharing)


def read_bytes(config: ModelConfig, chosen: Sequence[int], ring_layers: int = DISK_RING_LAYERS) -> int:
    """What a pass reads from files at the most; these are never quantised."""
    layers = layer_bytes(dataclasses.replace(config, quantization=None))
    return sum(layers[layer].block for layer in read_layers(chosen, ring_layers))
