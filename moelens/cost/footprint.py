"""How many bytes a run needs, by purpose."""

from __future__ import annotations

from moelens.models.config import ModelConfig, MoEFFN

LOGIT_ROWS = 256  # rows of logits that exist at once
LIVE_ROWS = 8  # tensors of a step's rows that exist at once: x's norm, q, k, v, also joined, attended, ids, positions
RESIDUAL_ROWS = 2  # x before and after a block, in float32 whatever the model's dtype


def activation_bytes(config: ModelConfig, step_tokens: int) -> int:
    """Bytes of everything that a step of `step_tokens` rows holds beside weights and cache.

    Per row: RESIDUAL_ROWS of float32 and LIVE_ROWS tensors of the widest width; per active expert its inner activations
    in the model's dtype and its output in float32. Plus LOGIT_ROWS rows of float32 logits, twice (a sampler may copy
    them).
    """
    per_row = 0
    for layer in config.layers:
        attention, ffn = layer.attention, layer.ffn
        widest = max(config.hidden, attention.query_heads * attention.head_dim)
        active, width = (ffn.active, ffn.width) if isinstance(ffn, MoEFFN) else (1, ffn.width)
        inner = active * (2 * width * config.dtype.itemsize + 4 * config.hidden)
        residual = RESIDUAL_ROWS * 4 * config.hidden
        per_row = max(per_row, residual + LIVE_ROWS * widest * config.dtype.itemsize + inner)
    return step_tokens * per_row + 2 * min(LOGIT_ROWS, step_tokens) * config.vocab * 4
