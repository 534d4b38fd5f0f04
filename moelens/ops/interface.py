"""The operations that models are written in: their names, shapes and meaning.

`ReferenceOps` is the definition, in plain torch. `NativeOps` runs the compiled kernels of csrc/.

Letters: T rows, S requests, H hidden, Q query heads, K KV heads (or the inner dimension of a product), D head dim,
E experts, A active experts, I expert width, V vocabulary, B tokens per block, N blocks (or the columns of a product).

Every op is row-wise or attends over one request's rows, and a row's result is the same bits whatever rows share the
call and however many threads compute it. Activations are bfloat16 or float32, contiguous; sums are taken in float32.
Weights are of the activations' dtype or int8, with a scale for each row: then the rows of x are quantised likewise
(`ops/quantized.py`), sums are whole numbers, and all after them is the same.
A model that runs in bfloat16 keeps its residual stream in float32, since that halves the error of its logits.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import torch


class Activation(enum.Enum):
    SILU = "silu"
    GELU = "gelu"  # the exact form, with erf
    GELU_TANH = "gelu_tanh"


class Scoring(enum.Enum):
    """How router logits become the weights of the chosen experts."""

    SOFTMAX = "softmax"  # softmax over all experts, then the top A
    TOPK_SOFTMAX = "topk_softmax"  # the top A, then softmax over those


@dataclass(frozen=True)
class Routing:
    """A router's rule. `norm` divides the chosen weights by their p-norm (1: by their sum; None: leaves them)."""

    active: int
    scoring: Scoring = Scoring.SOFTMAX
    norm: float | None = None


@dataclass(frozen=True)
class Rotation:
    """The rotary embedding of one layer: inverse_frequencies [R/2] float32 in radians per position; `magnitude`
    multiplies cosines and sines.
    """

    inverse_frequencies: torch.Tensor
    magnitude: float


@dataclass(frozen=True)
class QKNorm:
    """RMS norms of q and k with weights of one head's width [D], or over all heads [Q·D] and [K·D]."""

    q: torch.Tensor
    k: torch.Tensor
    eps: float


@dataclass(frozen=True)
class RowNorm:
    """A norm over rows with its weight [H]: RMSNorm, or LayerNorm where it is `centred`."""

    weight: torch.Tensor
    eps: float
    centred: bool = False


@dataclass(frozen=True)
class Matrix:
    """A weight [rows, columns] of y = x Wᵀ, in the storage order of the ops that packed it."""

    data: torch.Tensor
    rows: int
    columns: int


@dataclass(frozen=True)
class ExpertMatrices:
    """Gate and up [E, 2, width, hidden] and down [E, hidden, width], in the storage order of the packing ops."""

    gate_up: torch.Tensor
    down: torch.Tensor
    experts: int
    width: int
    hidden: int


@dataclass(frozen=True)
class KVLayer:
    """One layer's cached keys and values: `keys` and `values` are [N, K, …] in the storage order of the ops.

    Block b holds `block_tokens` tokens of one request.
    """

    keys: torch.Tensor
    values: torch.Tensor
    kv_heads: int
    head_dim: int
    block_tokens: int


@dataclass(frozen=True)
class AttentionRows:
    """Which query rows attend to which blocks.

    Rows starts[s] … starts[s+1]-1 of q belong to request s and are its tokens at positions cached[s], cached[s]+1, …;
    each sees the keys of its own request at positions up to its own (its own included), all written before the call.
    All int32, on the host: starts [S+1], cached [S], block_ids [S, columns] (unused columns are not read).
    """

    starts: torch.Tensor
    cached: torch.Tensor
    block_ids: torch.Tensor


@dataclass(frozen=True)
class SamplingRows:
    """How to pick a token for each of R rows of logits: float32 [R] temperature (0: greedy), top_p, min_p, uniform in
    [0, 1); int32 [R] top_k (0: all). One uniform number per row is all the randomness there is.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    uniform: torch.Tensor


RoutedRows = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # x, normed, ids, weights


class Ops(Protocol):
    """See each method; arguments are never modified unless the docstring says so."""

    # --- storage: how weights and caches lie in memory for these ops -------------------------------------------------
    def matrix_shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        """Shape of the storage of a Matrix that is kept in `dtype`: what it is packed from, or int8."""

    def gate_up_shape(self, width: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        """Shape of the storage of one expert's gate and up."""

    def down_shape(self, rows: int, width: int, dtype: torch.dtype) -> tuple[int, ...]:
        """Shape of the storage of one expert's down."""

    def pack_matrix(self, source: torch.Tensor, storage: torch.Tensor, first_row: int = 0) -> None:
        """Write rows [n, K] at row `first_row` (a multiple of 32) of a Matrix's storage; into int8, each is quantised.

        Thread-safe on disjoint rows, like the other two.
        """

    def pack_gate_up(self, gate: torch.Tensor, up: torch.Tensor, storage: torch.Tensor) -> None:
        """Write one expert's gate and up [I, K] into its storage."""

    def pack_down(self, source: torch.Tensor, storage: torch.Tensor) -> None:
        """Write one expert's down [N, I] into its storage."""

    def kv_shapes(
        self, blocks: int, kv_heads: int, head_dim: int, block_tokens: int, dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of one layer's keys and values; both start with [blocks, kv_heads]. All bytes must start as zero."""

    # --- row-wise -----------------------------------------------------------------------------------------------------
    def embed(self, table: torch.Tensor, token_ids: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
        """table [V, H], token_ids [T] int32 -> its rows [T, H] in `dtype`: the table's (None) or float32."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [T, W] of weight's dtype or float32 -> x / sqrt(mean(x²) + eps) * weight [W], in weight's dtype."""

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [T, W] of weight's dtype or float32 -> (x - mean) / sqrt(var(x) + eps) * weight [W], in weight's dtype."""

    def linear(
        self,
        x: torch.Tensor,
        weight: Matrix,
        *,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        scale: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """x [T, K] -> residual [T, N] + scale * (x Wᵀ + bias [N]), rounded once to `dtype`.

        That is x's own or float32; None is the residual's, or without one x's own. A residual is of the same dtype.
        """

    def split_qkv(
        self,
        joined: torch.Tensor,
        heads: tuple[int, int],
        positions: torch.Tensor,
        rotation: Rotation,
        *,
        norm: QKNorm | None = None,
        limit: float | None = None,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """joined [T, (Q+2K)·D] of `dtype` or float32, heads (Q, K), positions [T] int32 -> q [T, Q, D], k, v [T, K, D].

        In this order, all in float32 and rounded once to `dtype`: `norm` of q and k; every element held to
        [-limit, limit]; the first R elements of each head of q and k turned (rotate-half: pairs i, i + R/2).
        """

    def project_qkv(
        self,
        x: torch.Tensor,
        norm: RowNorm,
        weight: Matrix,
        heads: tuple[int, int],
        positions: torch.Tensor,
        rotation: Rotation,
        *,
        bias: torch.Tensor | None = None,
        qk_norm: QKNorm | None = None,
        limit: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [T, H], weight [(Q+2K)·D, H] -> q [T, Q, D], k, v [T, K, D]: `norm`, `linear` and `split_qkv` in turn.

        Between the latter two, rows are float32 where q and k are normalised, which saves a rounding, and elsewhere of
        norm's dtype, as q, k and v are.
        """

    def scale(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        """x * factor, rounded to x's dtype."""

    def sigmoid_scores(self, x: torch.Tensor, weight: Matrix) -> torch.Tensor:
        """x [T, K], weight [1, K] -> sigmoid(x Wᵀ) [T, 1] float32."""

    def route(self, logits: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [T, E] float32 -> ids [T, A] int32, best first (a tie: the lower id), and weights [T, A] float32."""

    def project_and_route(
        self,
        attended: torch.Tensor,
        output: Matrix,
        x: torch.Tensor,
        norm: RowNorm,
        router: Matrix,
        routing: Routing,
        *,
        bias: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> RoutedRows:
        """attended [T, Q·D], output [H, Q·D], x [T, H], router [E, H] -> y and normed [T, H], ids and weights [T, A].

        y = x + scale * (attended outputᵀ + bias) by `linear`, normed is its `norm`, and ids and weights are those of
        `route` by the logits normed routerᵀ in float32.
        """

    def experts(
        self,
        x: torch.Tensor,
        weights: ExpertMatrices,
        ids: torch.Tensor,
        scores: torch.Tensor,
        activation: Activation,
        *,
        residual: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> torch.Tensor:
        """x [T, H], ids [T, A] int32, scores [T, A] float32 ->
        residual [T, H] + scale * Σ_a scores[t, a] · down(act(gate x) ⊙ up x) of expert ids[t, a].

        The result is of the residual's dtype, which is x's own or float32 (x's own without one). The inner activations
        are rounded to x's dtype once; the sum over a is taken in float32, in an order that the row's ids alone decide.
        """

    # --- attention ----------------------------------------------------------------------------------------------------
    def write_kv(self, k: torch.Tensor, v: torch.Tensor, cache: KVLayer, slots: torch.Tensor) -> None:
        """Store k, v [T, K, D] at slots [T] int32 (block * block_tokens + offset). Writes `cache`."""

    def attention(
        self,
        q: torch.Tensor,
        cache: KVLayer,
        rows: AttentionRows,
        scale: float,
        window: int | None,
        *,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """q [T, Q, D] -> softmax(scale · q·k over the keys that each row sees) · v, [T, Q, D].

        It is written to `out`, which may be q itself (None: to a new tensor).

        With a window w, a row at position p sees the keys at positions p-w+1 … p. Decode and prefill rows alike: one
        order of accumulation over fixed tiles of keys.
        """

    # --- tokens -------------------------------------------------------------------------------------------------------
    def mask_logits(self, logits: torch.Tensor, allowed: torch.Tensor, rows: torch.Tensor) -> None:
        """-inf in row rows[m] of logits [R, V] float32 wherever mask m says no. Writes `logits`.

        allowed [M, V/32 rounded up] int32: bit i of word w is token 32 w + i; rows [M] int32, no two the same.
        """

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
        """logits [R, V] float32 -> token ids [R] int32.

        Greedy rows take the lowest id among the largest logits. Others: divide by temperature, softmax, keep those
        ≥ min_p × the largest, of these the top_k largest, of these the smallest set of largest whose sum reaches the
        share top_p of theirs (as vLLM does); then walk the kept tokens in ascending order of id until their sum
        exceeds uniform × the kept total.
        A row with a NaN, or whose largest is not finite, gives -1; no other row notices.
        """


def project_and_route_in_turn(
    self: Ops,
    attended: torch.Tensor,
    output: Matrix,
    x: torch.Tensor,
    norm: RowNorm,
    router: Matrix,
    routing: Routing,
    *,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
) -> RoutedRows:
    """`Ops.project_and_route` by the ops that it consists of, as below."""
    y = self.linear(attended, output, bias=bias, residual=x, scale=scale)
    normed = row_norm(self, y, norm)
    return y, normed, *self.route(self.linear(normed, router, dtype=torch.float32), routing)


def row_norm(ops: Ops, x: torch.Tensor, norm: RowNorm) -> torch.Tensor:
    """x [T, H] -> [T, H] by the op that it is."""
    return (ops.layer_norm if norm.centred else ops.rms_norm)(x, norm.weight, norm.eps)


def project_qkv_in_turn(
    self: Ops,
    x: torch.Tensor,
    norm: RowNorm,
    weight: Matrix,
    heads: tuple[int, int],
    positions: torch.Tensor,
    rotation: Rotation,
    *,
    bias: torch.Tensor | None = None,
    qk_norm: QKNorm | None = None,
    limit: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Ops.project_qkv` by the ops that it consists of: the method of implementations that have no kernel for it."""
    normed = row_norm(self, x, norm)
    joined = self.linear(normed, weight, bias=bias, dtype=normed.dtype if qk_norm is None else torch.float32)
    return self.split_qkv(joined, heads, positions, rotation, norm=qk_norm, limit=limit, dtype=normed.dtype)
