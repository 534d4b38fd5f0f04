"""The definition of every op, in plain torch: slow and clear, what the compiled kernels are compared with."""

from __future__ import annotations

import torch

from moelens.ops import quantized
from moelens.ops.interface import (
    Activation,
    AttentionRows,
    ExpertMatrices,
    KVLayer,
    Matrix,
    QKNorm,
    Rotation,
    Routing,
    SamplingRows,
    Scoring,
    project_and_route_in_turn,
    project_qkv_in_turn,
)


class ReferenceOps:
    """See `Ops` for each method; storage is the logical shape itself (of int8 weights with `SCALE_BYTES` more columns),
    keys and values are [N, K, B, D].

    With float64 activations everything is computed in float64 and nothing is rounded on the way, also where the
    interface says float32: that is what kernels are measured against. Torch's products may give other bits when the
    number of rows changes: this is the one promise of `Ops` that is not kept here.
    """

    # --- storage ------------------------------------------------------------------------------------------------------
    def matrix_shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return rows, _stored_columns(columns, dtype)

    def gate_up_shape(self, width: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return 2, width, _stored_columns(columns, dtype)

    def down_shape(self, rows: int, width: int, dtype: torch.dtype) -> tuple[int, ...]:
        return rows, _stored_columns(width, dtype)

    def pack_matrix(self, source: torch.Tensor, storage: torch.Tensor, first_row: int = 0) -> None:
        _store(source, storage[first_row : first_row + source.shape[0]])

    def pack_gate_up(self, gate: torch.Tensor, up: torch.Tensor, storage: torch.Tensor) -> None:
        _store(gate, storage[0])
        _store(up, storage[1])

    def pack_down(self, source: torch.Tensor, storage: torch.Tensor) -> None:
        _store(source, storage)

    def kv_shapes(
        self, blocks: int, kv_heads: int, head_dim: int, block_tokens: int, dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shape = (blocks, kv_heads, block_tokens, head_dim)
        return shape, shape

    # --- row-wise -----------------------------------------------------------------------------------------------------
    def embed(self, table: torch.Tensor, token_ids: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
        return table[token_ids.long()].to(dtype or table.dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = _widen(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return _norm_result(normed, x, weight)

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = _widen(x)
        centred = wide - wide.mean(-1, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
        return _norm_result(normed, x, weight)

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
        y = _product(_widen(x), weight.data)
        if bias is not None:
            y = y + bias.to(y.dtype)
        y = _scaled_sum(residual, scale, y)
        return y.to(_result_dtype(x, residual, dtype))

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
        rows, (query_heads, kv_heads) = joined.shape[0], heads
        head_dim = joined.shape[1] // (query_heads + 2 * kv_heads)
        widths = [count * head_dim for count in (query_heads, kv_heads, kv_heads)]
        q, k, v = torch.split(_widen(joined), widths, dim=1)
        if norm is not None:
            q, k = _norm_groups(q, norm.q, norm.eps), _norm_groups(k, norm.k, norm.eps)
        if limit is not None:
            q, k, v = (y.clamp(-limit, limit) for y in (q, k, v))
        q, k, v = (y.reshape(rows, -1, head_dim) for y in (q, k, v))
        return _rotate(q, positions, rotation).to(dtype), _rotate(k, positions, rotation).to(dtype), v.to(dtype)

    project_qkv = project_qkv_in_turn
    project_and_route = project_and_route_in_turn

    def scale(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        return (_widen(x) * factor).to(x.dtype)

    def sigmoid_scores(self, x: torch.Tensor, weight: Matrix) -> torch.Tensor:
        return torch.sigmoid(_product(_widen(x), weight.data))

    def route(self, logits: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
        # By logit and not by weight: two logits that differ may round to one weight.
        sorted_logits, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        ids = order[:, : routing.active]
        if routing.scoring is Scoring.TOPK_SOFTMAX:
            weights = torch.softmax(sorted_logits[:, : routing.active], -1)
        else:
            weights = torch.softmax(logits, -1).gather(1, ids)
        if routing.norm is not None:
            weights = weights / torch.linalg.vector_norm(weights, ord=routing.norm, dim=-1, keepdim=True)
        return ids.int(), weights

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
        wide = _widen(x)
        terms = wide.new_zeros(*ids.shape, weights.hidden)  # [T, A, H]
        for expert in sorted(set(ids.flatten().tolist())):
            rows, places = torch.nonzero(ids == expert, as_tuple=True)
            gate = _product(wide[rows], weights.gate_up[expert, 0])
            up = _product(wide[rows], weights.gate_up[expert, 1])
            inner = _widen((_activate(gate, activation) * up).to(x.dtype))
            terms[rows, places] = _product(inner, weights.down[expert]) * scores[rows, places, None].to(wide.dtype)
        total = terms[:, 0]
        for place in range(1, ids.shape[1]):
            total = total + terms[:, place]
        return _scaled_sum(residual, scale, total).to(_result_dtype(x, residual, None))

    # --- attention ----------------------------------------------------------------------------------------------------
    def write_kv(self, k: torch.Tensor, v: torch.Tensor, cache: KVLayer, slots: torch.Tensor) -> None:
        blocks = slots.long() // cache.block_tokens
        offsets = slots.long() % cache.block_tokens
        cache.keys[blocks, :, offsets] = k.to(cache.keys.dtype)
        cache.values[blocks, :, offsets] = v.to(cache.values.dtype)

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
        out = torch.empty_like(q) if out is None else out
        starts = rows.starts.tolist()
        for request, cached in enumerate(rows.cached.tolist()):
            begin, end = starts[request], starts[request + 1]
            context = cached + end - begin
            blocks = rows.block_ids[request, : -(-context // cache.block_tokens)].long()
            keys = _gather(cache.keys, blocks)[:, :context]  # [K, context, D]
            values = _gather(cache.values, blocks)[:, :context]
            seen = _visible(torch.arange(cached, context), context, window)
            out[begin:end] = _attend(_widen(q[begin:end]), keys, values, seen, scale).to(q.dtype)
        return out

    # --- tokens -------------------------------------------------------------------------------------------------------
    def mask_logits(self, logits: torch.Tensor, allowed: torch.Tensor, rows: torch.Tensor) -> None:
        bits = allowed[:, :, None] >> torch.arange(32, dtype=torch.int32) & 1  # [M, words, 32]
        forbidden = bits.flatten(1)[:, : logits.shape[1]] == 0
        logits[rows] = logits[rows].masked_fill(forbidden, float("-inf"))

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
        picked = [
            _pick_of_row(row, temperature, top_k, top_p, min_p, uniform)
            for row, temperature, top_k, top_p, min_p, uniform in zip(
                logits,
                rows.temperature.tolist(),
                rows.top_k.tolist(),
                rows.top_p.tolist(),
                rows.min_p.tolist(),
                rows.uniform.tolist(),
                strict=True,
            )
        ]
        return torch.tensor(picked, dtype=torch.int32)


def _widen(x: torch.Tensor) -> torch.Tensor:
    """x in the type that sums are taken in: float64 if it is that, else float32."""
    return x if x.dtype == torch.float64 else x.float()


def _stored_columns(columns: int, dtype: torch.dtype) -> int:
    return columns + quantized.SCALE_BYTES if dtype == torch.int8 else columns


def _store(source: torch.Tensor, storage: torch.Tensor) -> None:
    if storage.dtype == torch.int8:
        quantized.store(source, storage)
    else:
        storage.copy_(source)


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x Wᵀ in x's dtype."""
    if weight.dtype == torch.int8:
        return quantized.product(x, weight)
    return x @ weight.to(x.dtype).T


def _scaled_sum(residual: torch.Tensor | None, scale: float, y: torch.Tensor) -> torch.Tensor:
    """residual + scale * y in y's dtype."""
    return scale * y if residual is None else residual.to(y.dtype) + scale * y


def _result_dtype(x: torch.Tensor, residual: torch.Tensor | None, dtype: torch.dtype | None) -> torch.dtype:
    if x.dtype == torch.float64:
        return x.dtype
    return dtype or (x.dtype if residual is None else residual.dtype)


def _norm_result(normed: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    y = normed * weight.to(normed.dtype)
    return y if x.dtype == torch.float64 else y.to(weight.dtype)


def _norm_groups(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of x [T, W] over as many elements at a time as weight has."""
    groups = x.view(len(x), -1, weight.shape[0])
    return (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps) * weight.to(x.dtype)).flatten(1)


def _rotate(x: torch.Tensor, positions: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """x [T, heads, D] with the pairs i, i + R/2 of each head turned."""
    half = rotation.inverse_frequencies.shape[0]
    # The angles are float32 whatever x is: their rounding at far positions belongs to the definition.
    angles = positions.float()[:, None, None] * rotation.inverse_frequencies.float()  # [T, 1, R/2]
    cos = angles.to(x.dtype).cos() * rotation.magnitude
    sin = angles.to(x.dtype).sin() * rotation.magnitude
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def _activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation is Activation.SILU:
        return torch.nn.functional.silu(x)
    return torch.nn.functional.gelu(x, approximate="tanh" if activation is Activation.GELU_TANH else "none")


def _gather(paged: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """The tokens of some blocks [N, K, B, D], in order: [K, blocks * B, D]."""
    return paged[blocks].transpose(0, 1).flatten(1, 2)


def _visible(positions: torch.Tensor, context: int, window: int | None) -> torch.Tensor:
    """Which keys the rows at `positions` see: bool [rows, context]."""
    distance = positions[:, None] - torch.arange(context)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor, scale: float
) -> torch.Tensor:
    """q [n, Q, D], keys and values [K, context, D], seen [n, context] -> [n, Q, D], in q's dtype."""
    kv_heads = keys.shape[0]
    grouped = q.view(q.shape[0], kv_heads, -1, q.shape[2])  # [n, K, Q/K, D]
    scores = torch.einsum("nkgd,kcd->nkgc", grouped, keys.to(q.dtype)) * scale
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    return torch.einsum("nkgc,kcd->nkgd", torch.softmax(scores, -1), values.to(q.dtype)).flatten(1, 2)


def _pick_of_row(row: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    peak = row.max()  # NaN where the row holds one
    if not peak.isfinite():
        return -1
    if temperature == 0:
        return _pick_greedily(row)
    return _pick(row.double() / temperature, top_k, top_p, min_p, uniform)


def _pick_greedily(logits: torch.Tensor) -> int:
    return int(torch.nonzero(logits == logits.max())[0])


def _pick(logits: torch.Tensor, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """The token that `uniform` falls on, given one row of logits [V] already divided by the temperature."""
    largest_first, ids = torch.sort(torch.softmax(logits, -1), descending=True, stable=True)
    kept = int((largest_first >= min_p * largest_first[0]).sum())
    kept = kept if top_k == 0 else min(top_k, kept)
    if top_p < 1:
        reached = largest_first[:kept].cumsum(0)
        before = torch.cat([reached.new_zeros(1), reached[:-1]])
        kept = int((before < top_p * reached[-1]).sum())
    by_id, order = ids[:kept].sort()
    reached = largest_first[:kept][order].cumsum(0)
    return int(by_id[int((reached <= uniform * float(reached[-1])).sum())])
