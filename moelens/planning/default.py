"""The plan of a user who sets little: fixed sizes of a step, and all the cache that memory allows and jobs can use."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from moelens.cost.footprint import activation_bytes
from moelens.errors import CapacityError, ConfigError
from moelens.models.config import ModelConfig
from moelens.plan import FREE, Plan, Streaming
from moelens.planning.disk import disk_layers, host_weight_bytes
from moelens.planning.placement import LayerBytes

logger = logging.getLogger(__name__)

MAX_REQUESTS = 256
# With the last there are enough rows per expert for the products to run near the processor's peak. More are a little
# faster: they share the reading of weights, and more prompts begin before the first ones decode, beside fewer others.
STEP_TOKENS = (8192, 4096, 2048)
# What activations of all but the last may take at most: of the memory beside weights and a cache of given size, or of
# all memory where weights are read from disk in every step.
ACTIVATION_SHARE = 1 / 8
BLOCK_TOKENS = 32
USUAL_TOKENS = 2048  # of a request, for how much cache is of use


@dataclass(frozen=True)
class Limits:
    """What the user fixed; None: to be chosen.

    `memory_bytes` is for weights, cache and activations together; `weight_bytes` and `kv_bytes` are what of it weights
    and cache may take. `streaming` is of a device.
    """

    memory_bytes: int
    max_model_len: int | None = None
    max_requests: int | None = None
    step_tokens: int | None = None
    kv_bytes: int | None = None
    weight_bytes: int | None = None
    share_prefixes: bool = True
    streaming: Streaming = FREE


@dataclass(frozen=True)
class Sizes:
    """What is already known of a model in memory: bytes of its weights, and of one cache block of `block_tokens` tokens
    over all layers.

    `layers` are those whose experts may be read from disk in every step; none where the weights are in no files.
    """

    weight_bytes: int
    block_bytes: int
    layers: tuple[LayerBytes, ...] = ()
    block_tokens: int = BLOCK_TOKENS

    @property
    def resident_bytes(self) -> int:
        """Of weights that belong to no layer."""
        return self.weight_bytes - sum(layer.front + layer.block for layer in self.layers)

    def host_bytes(self, on_disk: Collection[int]) -> int:
        """Of weights in memory when the experts of some layers are on disk."""
        return host_weight_bytes(self.layers, self.resident_bytes, on_disk) if on_disk else self.weight_bytes


def choose_plan(config: ModelConfig, sizes: Sizes, limits: Limits, threads: int) -> tuple[Plan, int]:
    """The plan, and the longest sequence (max_model_len, in tokens) that it can hold.

    Raises ConfigError when the limits contradict each other or the model, CapacityError when weights, activations and
    one sequence of the asked length don't fit even when all experts are read from disk.
    """
    length = _checked_length(config, limits)
    beside_weights = limits.memory_bytes - sizes.weight_bytes - (limits.kv_bytes or 0)
    max_requests, step_tokens = _step(config, limits, beside_weights)
    on_disk = _on_disk(config, sizes, limits, step_tokens, max_requests * length)
    if on_disk:
        max_requests, step_tokens = _step(config, limits, limits.memory_bytes)
        on_disk = _on_disk(config, sizes, limits, step_tokens, max_requests * length)
    blocks = _kv_bytes(config, sizes, limits, step_tokens, on_disk) // sizes.block_bytes
    blocks = min(blocks, max_requests * -(-length // sizes.block_tokens))
    if blocks * sizes.block_tokens < length:
        length = _shortened(length, blocks, sizes, limits)
    plan = Plan(
        step_tokens=step_tokens,
        max_requests=max_requests,
        kv_blocks=blocks,
        block_tokens=sizes.block_tokens,
        share_prefixes=limits.share_prefixes,
        retained_blocks=_retained_blocks(limits, blocks),
        ring_layers=max(2, len(config.layers)),
        threads=threads,
        disk_layers=on_disk,
    )
    return plan, length


def _step(config: ModelConfig, limits: Limits, room_bytes: int) -> tuple[int, int]:
    """Requests and rows of a step, whose activations may take their share of `room_bytes`."""
    allowed = room_bytes * ACTIVATION_SHARE
    most_rows = next((rows for rows in STEP_TOKENS if activation_bytes(config, rows) <= allowed), STEP_TOKENS[-1])
    max_requests = limits.max_requests or min(MAX_REQUESTS, limits.step_tokens or MAX_REQUESTS)
    return max_requests, limits.step_tokens or max(most_rows, max_requests)


def _on_disk(config: ModelConfig, sizes: Sizes, limits: Limits, step_tokens: int, most_context: int) -> tuple[int, ...]:
    """The layers whose experts are read from disk: none where weights and cache fit.

    Where the user says neither, the cache gets half of what is left. With memory M, weights W and a cache of C bytes, a
    pass reads W - (M - C) bytes for a number of tokens that grows with C, so tokens per second go as C/(W - M + C): a
    cache of M/2 reaches half of what any could where W is 1.5 M, and more where it is less.
    """
    if not sizes.layers:
        return ()
    left = limits.memory_bytes - activation_bytes(config, step_tokens) - (limits.kv_bytes or 0)
    allowed = left if limits.weight_bytes is None else min(left, limits.weight_bytes)
    if limits.kv_bytes is None:
        if sizes.weight_bytes <= min(allowed, left - sizes.block_bytes):
            return ()
        useful = min(most_context, MAX_REQUESTS * USUAL_TOKENS) // sizes.block_tokens * sizes.block_bytes
        allowed = min(allowed, left - max(sizes.block_bytes, min(useful, left // 2)))
    found = disk_layers(sizes.layers, sizes.resident_bytes, allowed)
    if found is None:  # then as little as there may be
        found = tuple(range(len(sizes.layers)))
        least = sizes.host_bytes(found)
        if limits.weight_bytes is not None and limits.weight_bytes < least:
            raise CapacityError(
                f"cpu_weights_memory_bytes is {limits.weight_bytes}, but with all experts on disk the weights still "
                f"take {least} bytes of memory: those that every step uses, and room for the experts of two layers. "
                f"Raise it to {least} or more."
            )
    return found


def _retained_blocks(limits: Limits, blocks: int) -> int:
    """All blocks of a cache whose size was asked for or weighed; of one that may grow into all memory, an eighth."""
    if not limits.share_prefixes:
        return 0
    return blocks if limits.kv_bytes is not None else blocks // 8


def _checked_length(config: ModelConfig, limits: Limits) -> int:
    asked = limits.max_model_len
    if asked is not None and asked > config.max_context:
        raise ConfigError(
            f"max_model_len {asked} is longer than the model's own limit of {config.max_context} tokens "
            f"(max_position_embeddings of its config.json). Use {config.max_context} or less."
        )
    return config.max_context if asked is None else asked


def _kv_bytes(config: ModelConfig, sizes: Sizes, limits: Limits, step_tokens: int, on_disk: tuple[int, ...]) -> int:
    if limits.kv_bytes is not None:
        return limits.kv_bytes
    activations = activation_bytes(config, step_tokens)
    weights = sizes.host_bytes(on_disk)
    left = limits.memory_bytes - weights - activations
    if left < sizes.block_bytes:
        raise CapacityError(
            f"{limits.memory_bytes / 1e9:.2f} GB of memory can't hold the weights ({weights / 1e9:.2f} GB"
            f"{' with all experts on disk' if on_disk else ''}), the activations of {step_tokens} tokens "
            f"({activations / 1e9:.2f} GB) and a key/value cache. Raise "
            "cpu_memory_bytes, lower max_num_batched_tokens or use a smaller model."
        )
    return left


def _shortened(length: int, blocks: int, sizes: Sizes, limits: Limits) -> int:
    holds = blocks * sizes.block_tokens
    if limits.max_model_len is not None or blocks < 1:
        needed = -(-length // sizes.block_tokens) * sizes.block_bytes
        raise CapacityError(
            f"The key/value cache holds {holds} tokens, but one sequence may take {length} (max_model_len). Raise "
            f"kv_cache_memory_bytes to {needed} or more, or lower max_model_len to {holds} or less."
        )
    logger.warning("max_model_len is lowered from %d to %d tokens: the key/value cache holds no more", length, holds)
    return holds
