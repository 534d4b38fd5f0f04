"""How many bytes a run needs, by purpose."""

from __future__ import annotations

from moelens.models.config import ModelConfig, MoEFFN

LOGIT_ROWS = 256  # rows of logits that exist at once
LIVE_ROWS = 8  # tensors of a step's rows that exist at once: x, its norm, q, k, v, attended, ids, positions


def activation_bytes(config: ModelConfig, step_tokens: int) -> int:
    """Bytes of everything that a step of `step_tokens` rows holds beside weights and cache.

    Per row: LIVE_ROWS tensors of the widest width; per active expert its inner activations in the model's dtype and its
    output in float32. Plus LOGIT_ROWS rows of float32 logits, twice (a sampler may copy them).
    """
    per_row = 0
    for layer in config.layers:
        attention, ffn = layer.attention, layer.ffn
        widest = max(config.hidden, attention.query_heads * attention.head_dim)
        active, width = (ffn.active, ffn.width) if isinstance(ffn, MoEFFN) else (1, ffn.width)
        inner = active * (2 * width * config.dtype.itemsize + 4 * config.hidden)
        per_row = max(per_row, LIVE_ROWS * widest * config.dtype.itemsize + inner)
    return step_tokens * per_row + 2 * min(LOGIT_ROWS, step_tokens) * config.vocab * 4
