"""The plan of a user who sets little: fixed sizes of a step, and all the cache that memory allows and jobs can use."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from moelens.cost.footprint import activation_bytes
from moelens.errors import CapacityError, ConfigError
from moelens.models.config import ModelConfig
from moelens.plan import Plan

logger = logging.getLogger(__name__)

MAX_REQUESTS = 256
STEP_TOKENS = 2048  # enough rows per expert for the products to run at the processor's peak
BLOCK_TOKENS = 32


@dataclass(frozen=True)
class Limits:
    """What the user fixed; None: to be chosen.

    `memory_bytes` is for weights, cache and activations together; `kv_bytes` for the cache alone.
    """

    memory_bytes: int
    max_model_len: int | None = None
    max_requests: int | None = None
    step_tokens: int | None = None
    kv_bytes: int | None = None
    share_prefixes: bool = True


@dataclass(frozen=True)
class Sizes:
    """What is already known of a model in memory: bytes of its weights, and of one cache block over all layers."""

    weight_bytes: int
    block_bytes: int


def choose_plan(config: ModelConfig, sizes: Sizes, limits: Limits, threads: int) -> tuple[Plan, int]:
    """The plan, and the longest sequence (max_model_len, in tokens) that it can hold.

    Raises ConfigError when the limits contradict each other or the model, CapacityError when weights, activations and
    one sequence of the asked length don't fit.
    """
    length = _checked_length(config, limits)
    max_requests = limits.max_requests or min(MAX_REQUESTS, limits.step_tokens or MAX_REQUESTS)
    step_tokens = limits.step_tokens or max(STEP_TOKENS, max_requests)
    blocks = _kv_bytes(config, sizes, limits, step_tokens) // sizes.block_bytes
    blocks = min(blocks, max_requests * -(-length // BLOCK_TOKENS))
    if blocks * BLOCK_TOKENS < length:
        length = _shortened(length, blocks, sizes, limits)
    plan = Plan(
        step_tokens=step_tokens,
        max_requests=max_requests,
        kv_blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        share_prefixes=limits.share_prefixes,
        retained_blocks=_retained_blocks(limits, blocks),
        ring_layers=max(2, len(config.layers)),
        threads=threads,
    )
    return plan, length


def _retained_blocks(limits: Limits, blocks: int) -> int:
    """All blocks of a cache whose size was asked for; of one that may grow into all memory, an eighth."""
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


def _kv_bytes(config: ModelConfig, sizes: Sizes, limits: Limits, step_tokens: int) -> int:
    if limits.kv_bytes is not None:
        return limits.kv_bytes
    activations = activation_bytes(config, step_tokens)
    left = limits.memory_bytes - sizes.weight_bytes - activations
    if left < sizes.block_bytes:
        raise CapacityError(
            f"{limits.memory_bytes / 1e9:.2f} GB of memory can't hold the weights ({sizes.weight_bytes / 1e9:.2f} GB), "
            f"the activations of {step_tokens} tokens ({activations / 1e9:.2f} GB) and a key/value cache. Raise "
            "cpu_memory_bytes, lower max_num_batched_tokens or use a smaller model."
        )
    return left


def _shortened(length: int, blocks: int, sizes: Sizes, limits: Limits) -> int:
    holds = blocks * BLOCK_TOKENS
    if limits.max_model_len is not None or blocks < 1:
        needed = -(-length // BLOCK_TOKENS) * sizes.block_bytes
        raise CapacityError(
            f"The key/value cache holds {holds} tokens, but one sequence may take {length} (max_model_len). Raise "
            f"kv_cache_memory_bytes to {needed} or more, or lower max_model_len to {holds} or less."
        )
    logger.warning("max_model_len is lowered from %d to %d tokens: the key/value cache holds no more", length, holds)
    return holds
