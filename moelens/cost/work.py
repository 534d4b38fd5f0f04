"""THE formula set: what each stage of a layer computes and moves, counted exactly, knowing no hardware.

A multiplication and an addition are two floating-point operations. Weights count once a pass over the rows that use
them, inputs once as read, outputs once as written; what a kernel reads twice is its own affair.
"""

from __future__ import annotations

from dataclasses import dataclass

from moelens.cost.routing import EVEN, RoutingLoad
from moelens.cost.workload import StepShape
from moelens.models.config import DenseFFN, LayerConfig, ModelConfig, MoEFFN, Quantization
from moelens.pipeline.task import OF_NO_LAYER, Stage

ID_BYTES = 4  # an int32: of a token, a position, an expert
SCALE_BYTES = 4  # a float32 for each row of a matrix in int8
RESIDUAL_BYTES = 4  # an element of the residual stream and of logits, float32 whatever the model's dtype


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes moved between a processor and its memory, by what they are of."""

    flops: float = 0.0
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    activation_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
            self.activation_bytes + other.activation_bytes,
        )

    @property
    def bytes(self) -> float:
        """All that is moved."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """Floating-point operations per byte."""
        return self.flops / self.bytes if self.bytes else 0.0


# Where fewer of a layer's experts are chosen than this share, waiting for them costs less than bringing all ahead of
# time: their products, bound by reading them from the device's own faster memory, take less than the other half.
ROUTED_SHARE = 0.5


def brings_routed(ffn: MoEFFN | DenseFFN, tokens: int) -> bool:
    """Whether a step of so many rows brings only the experts that these go to, once that is known."""
    return isinstance(ffn, MoEFFN) and EVEN.touched(ffn, tokens) <= ROUTED_SHARE * ffn.experts


def stage_work(stage: Stage, config: ModelConfig, layer: int, shape: StepShape, routing: RoutingLoad = EVEN) -> Work:
    """What `stage` does in `layer` for rows of `shape`; LOAD and READ are of the whole layer, or all its experts."""
    of = config.layers[layer]
    if stage in OF_NO_LAYER:
        return _tokens(stage, config, shape)
    if stage is Stage.LOAD:
        return Work(weight_bytes=layer_weight_bytes(config, layer))
    if stage is Stage.READ:
        return Work(weight_bytes=expert_weight_bytes(config, layer))
    if stage is Stage.BEFORE_ATTENTION:
        return _before_attention(config, of, shape.tokens)
    finished = shape.logit_rows if layer + 1 == len(config.layers) else shape.tokens  # the last layer's other rows stop
    if stage is Stage.AFTER_ATTENTION:
        return _route(config, of, finished) + _experts(config, of, finished, routing)
    if stage is Stage.ROUTE:
        return _route(config, of, finished)
    if stage in (Stage.EXPERTS, Stage.FINISH_ROWS):
        return _experts(config, of, finished, routing)
    if stage is Stage.UPLOAD_ROWS:
        return Work(activation_bytes=finished * config.hidden * RESIDUAL_BYTES)
    if stage in (Stage.LOAD_EXPERTS, Stage.READ_EXPERTS):
        return Work(weight_bytes=_touched_bytes(config, of, finished, routing))
    if stage is Stage.OFFLOAD_ROUTES:
        return Work(activation_bytes=finished * (of.ffn.active if isinstance(of.ffn, MoEFFN) else 1) * ID_BYTES)
    return _attention(stage, config, of, shape)


def layer_weight_bytes(config: ModelConfig, layer: int) -> int:
    """Bytes of one layer's matrices (norms and biases, a few parts in ten thousand, left out)."""
    of, hidden = config.layers[layer], config.hidden
    q, kv = _widths(of)
    nbytes = matrix_bytes(config, q + 2 * kv, hidden) + matrix_bytes(config, hidden, q)
    return nbytes + _router_bytes(config, of) + _shared_bytes(config, of) + expert_weight_bytes(config, layer)


def expert_weight_bytes(config: ModelConfig, layer: int) -> int:
    """Bytes of one layer's routed experts, or of its dense block."""
    of = config.layers[layer]
    count = of.ffn.experts if isinstance(of.ffn, MoEFFN) else 1
    return count * _expert_bytes(config, of.ffn.width)


def matrix_bytes(config: ModelConfig, rows: int, columns: int) -> int:
    """Bytes of a matrix of those that are quantised where the model is: in int8 each row has a scale."""
    if config.quantization is Quantization.INT8:
        return rows * (columns + SCALE_BYTES)
    return rows * columns * config.dtype.itemsize


def model_weight_bytes(config: ModelConfig) -> int:
    """Bytes of all matrices: every layer's, the embedding and the head (which is stored apart also when tied)."""
    layers = sum(layer_weight_bytes(config, layer) for layer in range(len(config.layers)))
    return layers + 2 * config.vocab * config.hidden * config.dtype.itemsize


def head_work(config: ModelConfig, rows: int) -> Work:
    """Final norm and head: 2·R·V·H operations."""
    item, hidden, vocab = config.dtype.itemsize, config.hidden, config.vocab
    if not rows:
        return Work()
    moved = rows * (hidden * (RESIDUAL_BYTES + 2 * item) + vocab * RESIDUAL_BYTES)
    return Work(2.0 * rows * vocab * hidden, weight_bytes=vocab * hidden * item, activation_bytes=moved)


def _before_attention(config: ModelConfig, layer: LayerConfig, tokens: int) -> Work:
    """Norm and the product for q, k and v: 2·T·H·(Q + 2K)·D operations."""
    item, hidden = config.dtype.itemsize, config.hidden
    q, kv = _widths(layer)
    columns = q + 2 * kv
    if not tokens:
        return Work()
    moved = tokens * (hidden * (RESIDUAL_BYTES + 2 * item) + columns * 2 * item)  # norm; product, rotary embedding
    nbytes = matrix_bytes(config, columns, hidden)
    return Work(2.0 * tokens * hidden * columns, weight_bytes=nbytes, activation_bytes=moved)


def _route(config: ModelConfig, layer: LayerConfig, tokens: int) -> Work:
    """Output projection, 2·T·Q·D·H, norm and router, 2·T·H·E."""
    item, hidden = config.dtype.itemsize, config.hidden
    q, _ = _widths(layer)
    if not tokens:
        return Work()
    columns = q + (layer.ffn.experts if isinstance(layer.ffn, MoEFFN) else 0)
    moved = tokens * (q * item + hidden * (2 * RESIDUAL_BYTES + item))
    nbytes = matrix_bytes(config, hidden, q) + _router_bytes(config, layer)
    return Work(2.0 * tokens * hidden * columns, weight_bytes=nbytes, activation_bytes=moved)


def experts_work(config: ModelConfig, layer: int, tokens: int, experts: float) -> Work:
    """Routed experts, 6·T·A·H·I, of which so many have rows, and the shared one, 6·T·H·I_shared; or the dense block."""
    of = config.layers[layer]
    return _experts_of(config, of, tokens, experts * _expert_bytes(config, of.ffn.width))


def _experts(config: ModelConfig, layer: LayerConfig, tokens: int, routing: RoutingLoad) -> Work:
    return _experts_of(config, layer, tokens, _touched_bytes(config, layer, tokens, routing)) if tokens else Work()


def _experts_of(config: ModelConfig, layer: LayerConfig, tokens: int, routed_bytes: float) -> Work:
    item, hidden, ffn = config.dtype.itemsize, config.hidden, layer.ffn
    inner = ffn.active * ffn.width + ffn.shared_width if isinstance(ffn, MoEFFN) else ffn.width
    nbytes = routed_bytes + _shared_bytes(config, layer)
    moved = tokens * (hidden * (2 * RESIDUAL_BYTES + item) + 2 * inner * item)
    return Work(6.0 * tokens * hidden * inner, weight_bytes=nbytes, activation_bytes=moved)


def _touched_bytes(config: ModelConfig, layer: LayerConfig, tokens: int, routing: RoutingLoad) -> float:
    """Bytes of the routed experts that the rows go to, or of the dense block."""
    ffn = layer.ffn
    touched = routing.touched(ffn, tokens) if isinstance(ffn, MoEFFN) else 1.0
    return touched * _expert_bytes(config, ffn.width)


def _expert_bytes(config: ModelConfig, width: int) -> int:
    """Bytes of gate, up and down."""
    return 2 * matrix_bytes(config, width, config.hidden) + matrix_bytes(config, config.hidden, width)


def _shared_bytes(config: ModelConfig, layer: LayerConfig) -> int:
    """Bytes of a shared expert."""
    ffn = layer.ffn
    return _expert_bytes(config, ffn.shared_width) if isinstance(ffn, MoEFFN) and ffn.shared_width else 0


def _router_bytes(config: ModelConfig, layer: LayerConfig) -> int:
    """Bytes of the router, which is never quantised."""
    return config.hidden * layer.ffn.experts * config.dtype.itemsize if isinstance(layer.ffn, MoEFFN) else 0


def _attention(stage: Stage, config: ModelConfig, layer: LayerConfig, shape: StepShape) -> Work:
    item, attention = config.dtype.itemsize, layer.attention
    q, kv = _widths(layer)
    if stage is Stage.OFFLOAD:  # k and v of every row, q of those that the host attends for
        return Work(activation_bytes=(shape.tokens * 2 * kv + shape.hosted_tokens * q) * item)
    if stage is Stage.UPLOAD:
        return Work(activation_bytes=shape.hosted_tokens * q * item)
    if stage is Stage.STORE_KV:
        return Work(kv_bytes=shape.tokens * 2 * kv * item, activation_bytes=shape.tokens * 2 * kv * item)
    if stage is Stage.ATTEND_DECODES:  # Eq 6: 4·Q·D operations over 2·K·D elements, so Q/K of them per bfloat16 byte
        keys = _seen(shape.decode_context, shape.decode_tokens, attention.window)
        moved = shape.decode_tokens * 2 * q * item
        return Work(4.0 * keys * q, kv_bytes=keys * 2 * kv * item, activation_bytes=moved)
    tokens, positions = shape.resumed_tokens, shape.resumed_pairs
    if stage is Stage.ATTEND_PREFILLS:  # those that no earlier step has begun
        tokens, positions = shape.prefill_tokens - tokens, shape.prefill_pairs - positions
    else:
        assert stage is Stage.ATTEND_RESUMED
    keys = positions / tokens if tokens else 0.0  # once for all rows of a request, so about as many as a row sees
    pairs = _seen(positions, tokens, attention.window)
    return Work(4.0 * pairs * q, kv_bytes=max(tokens, keys) * 2 * kv * item, activation_bytes=tokens * 2 * q * item)


def _tokens(stage: Stage, config: ModelConfig, shape: StepShape) -> Work:
    """What has to do with token ids and logits."""
    if stage is Stage.INPUT:
        return Work(activation_bytes=shape.tokens * 2 * ID_BYTES)
    if stage is Stage.LOGITS:
        return head_work(config, shape.logit_rows)
    return Work(activation_bytes=shape.logit_rows * config.vocab * RESIDUAL_BYTES)


def _seen(positions: int, rows: int, window: int | None) -> float:
    """Keys that rows see of `positions` in all, were every row's context the mean one."""
    return float(positions if window is None else min(positions, rows * window))


def _widths(layer: LayerConfig) -> tuple[int, int]:
    """Columns of q, and of k or v."""
    attention = layer.attention
    return attention.query_heads * attention.head_dim, attention.kv_heads * attention.head_dim
