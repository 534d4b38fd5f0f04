"""Tensor specs in the shapes and names that several families share."""

from __future__ import annotations

from moelens.models.architecture import Form, Piece, TensorSpec
from moelens.models.config import GQA, ModelConfig


def vector(name: str, source: str, size: int) -> TensorSpec:
    """A norm's weight or a bias."""
    return TensorSpec(name, Form.PLAIN, (size,), (Piece(source, (size,)),))


def joined_vector(name: str, *sources: tuple[str, int]) -> TensorSpec:
    """Vectors (checkpoint name, size), one after the other."""
    pieces = tuple(Piece(source, (size,)) for source, size in sources)
    return TensorSpec(name, Form.PLAIN, (sum(size for _, size in sources),), pieces)


def matrix(name: str, columns: int, *sources: tuple[str, int]) -> TensorSpec:
    """Matrices (checkpoint name, rows), one above the other."""
    pieces = tuple(Piece(source, (rows, columns)) for source, rows in sources)
    return TensorSpec(name, Form.MATRIX, (sum(rows for _, rows in sources), columns), pieces)


def separate_experts(
    name: str, experts: int, width: int, hidden: int, *, gate: str, up: str, down: str
) -> tuple[TensorSpec, TensorSpec]:
    """Gated feed-forward blocks with a tensor per matrix, whose checkpoint names hold `{expert}`."""
    gate_up = tuple(
        Piece(source.format(expert=expert), (width, hidden)) for expert in range(experts) for source in (gate, up)
    )
    downs = tuple(Piece(down.format(expert=expert), (hidden, width)) for expert in range(experts))
    return joined_experts(name, experts, width, hidden, gate_up=gate_up, down=downs)


def joined_experts(
    name: str, experts: int, width: int, hidden: int, *, gate_up: tuple[Piece, ...], down: tuple[Piece, ...]
) -> tuple[TensorSpec, TensorSpec]:
    """Gated feed-forward blocks made of any pieces: gate 0, up 0, gate 1, …; down 0, down 1, …."""
    return (
        TensorSpec(f"{name}.gate_up", Form.GATE_UP, (experts, 2, width, hidden), gate_up),
        TensorSpec(f"{name}.down", Form.DOWN, (experts, hidden, width), down),
    )


def dense_ffn(name: str, prefix: str, width: int, hidden: int) -> tuple[TensorSpec, TensorSpec]:
    """One gated feed-forward block: `{prefix}gate_proj.weight` and so on."""
    return separate_experts(
        name,
        1,
        width,
        hidden,
        gate=f"{prefix}gate_proj.weight",
        up=f"{prefix}up_proj.weight",
        down=f"{prefix}down_proj.weight",
    )


def projections(prefix: str, hidden: int, attention: GQA) -> tuple[TensorSpec, TensorSpec]:
    """The products before and after attention: `{prefix}q_proj.weight` and so on."""
    q, kv = _widths(attention)
    qkv = matrix(
        "qkv",
        hidden,
        (f"{prefix}q_proj.weight", q),
        (f"{prefix}k_proj.weight", kv),
        (f"{prefix}v_proj.weight", kv),
    )
    return qkv, matrix("output", q, (f"{prefix}o_proj.weight", hidden))


def qkv_bias(prefix: str, attention: GQA) -> TensorSpec:
    """The biases of the products before attention: `{prefix}q_proj.bias` and so on."""
    q, kv = _widths(attention)
    return joined_vector(
        "qkv_bias", (f"{prefix}q_proj.bias", q), (f"{prefix}k_proj.bias", kv), (f"{prefix}v_proj.bias", kv)
    )


def attention_biases(prefix: str, hidden: int, attention: GQA) -> tuple[TensorSpec, TensorSpec]:
    """The biases of the products before and after attention."""
    return qkv_bias(prefix, attention), vector("output_bias", f"{prefix}o_proj.bias", hidden)


def resident(
    config: ModelConfig,
    *,
    embedding: str = "model.embed_tokens.weight",
    norm: str = "model.norm.weight",
    head: str = "lm_head.weight",
) -> tuple[TensorSpec, ...]:
    """Embedding, final norm and head. When they are tied the head is a copy of the embedding in the order of the
    products: this doubles its memory."""
    table = Piece(embedding, (config.vocab, config.hidden))
    return (
        TensorSpec("embedding", Form.PLAIN, table.shape, (table,)),
        vector("final_norm", norm, config.hidden),
        matrix("head", config.hidden, (embedding if config.tied_embeddings else head, config.vocab)),
    )


def ignored(config: ModelConfig) -> tuple[str, ...]:
    """Tensors that a file may hold though they are not used: the head of a model whose embeddings are tied."""
    return ("lm_head.weight",) if config.tied_embeddings else ()


def _widths(attention: GQA) -> tuple[int, int]:
    """Columns of q, and of k or v."""
    return attention.query_heads * attention.head_dim, attention.kv_heads * attention.head_dim
