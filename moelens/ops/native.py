"""The ops on the CPU, by the compiled kernels of csrc/cpu; `NativeOps` checks nothing that the kernels check."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from moelens.errors import ConfigError, KernelError, UnsupportedModelError
from moelens.ops.chunks import Chunks, Empty
from moelens.ops.interface import (
    Activation,
    AttentionRows,
    ExpertMatrices,
    KVLayer,
    Matrix,
    QKNorm,
    Rotation,
    RoutedRows,
    Routing,
    RowNorm,
    SamplingRows,
)

try:
    from moelens import _cpu
except ImportError as error:  # the message says what the loader missed
    raise KernelError(
        f"the compiled kernels moelens._cpu can't be loaded ({error}); build them with: pip install -e ."
    ) from error

PANEL_COLUMNS = 32  # of a product's weights: the columns that are multiplied at a time
TILE_KEYS = 32  # of a block of the cache: the keys that are multiplied at a time
GATE_COLUMNS = 16  # gate and up share a panel


def choose_isa(isa: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The instruction set to run: `isa`, or what MOELENS_CPU_ISA says, or the best that this machine has.

    Raises KernelError when the machine can't run the one that was asked for.
    """
    wanted = isa or environment.get("MOELENS_CPU_ISA") or _cpu.best_isa()
    available = _cpu.available_isas()
    if wanted not in available:
        source = "the argument isa" if isa else "MOELENS_CPU_ISA"
        raise KernelError(f"{source} asks for {wanted!r}, but this machine can run only {', '.join(available)}")
    return wanted


def schedulable_cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: its affinity, bounded by the quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = cgroup.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no control group of version 2: there is no quota to obey
    return max(1, cores)


def new_tensor(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """From torch's allocator."""
    return torch.empty(tuple(shape), dtype=dtype)


class NativeOps:
    """The ops by compiled kernels: `threads` threads (None: all schedulable cores) of one instruction set.

    `empty` makes the tensors that ops return.

    One call at a time uses the threads; calls from several Python threads wait for each other. The pack_ functions run
    on the thread that calls them. While `calls` are deferred, what an op returns is written later.
    """

    def __init__(self, threads: int | None = None, isa: str | None = None, empty: Empty = new_tensor) -> None:
        self.isa = choose_isa(isa)
        self.threads = schedulable_cores() if threads is None else threads
        self._kernels = _cpu.Kernels(self.isa, self.threads)
        self._own_empty = empty
        self._chunks = Chunks(empty)

    @property
    def calls(self) -> _cpu.Kernels:
        """The calls of kernels, which may be deferred (`moelens.machine.cpu.Calls`)."""
        return self._kernels

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self._chunks.empty(shape, dtype) if self._kernels.deferring else self._own_empty(shape, dtype)

    # --- storage ------------------------------------------------------------------------------------------------------
    def matrix_shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        panels = -(-rows // PANEL_COLUMNS)
        if dtype == torch.float32:
            return panels, columns, PANEL_COLUMNS
        if dtype == torch.int8:
            return panels, -(-columns // 4) + 1, PANEL_COLUMNS, 4  # the last line: the columns' scales
        return panels, -(-columns // 2), PANEL_COLUMNS, 2

    def gate_up_shape(self, width: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return self.matrix_shape(-(-width // GATE_COLUMNS) * PANEL_COLUMNS, columns, dtype)

    def down_shape(self, rows: int, width: int, dtype: torch.dtype) -> tuple[int, ...]:
        return self.matrix_shape(rows, width, dtype)

    def pack_matrix(self, source: torch.Tensor, storage: torch.Tensor, first_row: int = 0) -> None:
        self._kernels.pack_matrix(source, storage, first_row)

    def pack_gate_up(self, gate: torch.Tensor, up: torch.Tensor, storage: torch.Tensor) -> None:
        self._kernels.pack_gate_up(gate, up, storage)

    def pack_down(self, source: torch.Tensor, storage: torch.Tensor) -> None:
        self._kernels.pack_down(source, storage)

    def kv_shapes(
        self, blocks: int, kv_heads: int, head_dim: int, block_tokens: int, dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if block_tokens < TILE_KEYS or block_tokens % TILE_KEYS:
            raise ConfigError(f"block_tokens must be a multiple of {TILE_KEYS}, got {block_tokens}.")
        tiles = (blocks, kv_heads, block_tokens // TILE_KEYS)
        chunks = -(-head_dim // PANEL_COLUMNS)
        if dtype == torch.float32:
            return (*tiles, head_dim, TILE_KEYS), (*tiles, chunks, TILE_KEYS, PANEL_COLUMNS)
        if head_dim % 2:
            raise UnsupportedModelError(
                f"head_dim {head_dim} is odd, and keys are kept as pairs in {dtype}; use dtype float32."
            )
        return (*tiles, head_dim // 2, TILE_KEYS, 2), (*tiles, chunks, TILE_KEYS // 2, PANEL_COLUMNS, 2)

    # --- row-wise -----------------------------------------------------------------------------------------------------
    def embed(self, table: torch.Tensor, token_ids: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
        out = self._empty((len(token_ids), table.shape[1]), dtype or table.dtype)
        self._kernels.embed(table, token_ids, out)
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out = self._empty(x.shape, weight.dtype)
        self._kernels.rms_norm(x, weight, eps, out)
        return out

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out = self._empty(x.shape, weight.dtype)
        self._kernels.layer_norm(x, weight, eps, out)
        return out

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
        wanted = dtype or (x.dtype if residual is None else residual.dtype)
        out = self._empty((x.shape[0], weight.rows), wanted)
        self._kernels.linear(x, weight.data, weight.rows, weight.columns, bias, residual, scale, out)
        return out

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
        head_dim = joined.shape[1] // (heads[0] + 2 * heads[1])
        q, k, v = self._empty_qkv(joined.shape[0], heads, head_dim, dtype)
        q_norm, k_norm, eps = (norm.q, norm.k, norm.eps) if norm else (None, None, 0.0)
        self._kernels.split_qkv(
            joined, positions, rotation.inverse_frequencies, rotation.magnitude, q_norm, k_norm, eps, limit, q, k, v
        )
        return q, k, v

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
        head_dim = weight.rows // (heads[0] + 2 * heads[1])
        q, k, v = self._empty_qkv(x.shape[0], heads, head_dim, norm.weight.dtype)
        q_norm, k_norm, eps = (qk_norm.q, qk_norm.k, qk_norm.eps) if qk_norm else (None, None, 0.0)
        self._kernels.project_qkv(
            x,
            norm.weight,
            norm.eps,
            norm.centred,
            weight.data,
            weight.rows,
            bias,
            positions,
            rotation.inverse_frequencies,
            rotation.magnitude,
            q_norm,
            k_norm,
            eps,
            limit,
            q,
            k,
            v,
        )
        return q, k, v

    def _empty_qkv(
        self, rows: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = self._empty((rows, heads[0], head_dim), dtype)
        k, v = (self._empty((rows, heads[1], head_dim), dtype) for _ in range(2))
        return q, k, v

    def scale(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        out = self._empty(x.shape, x.dtype)
        self._kernels.scale(x, factor, out)
        return out

    def sigmoid_scores(self, x: torch.Tensor, weight: Matrix) -> torch.Tensor:
        out = self._empty((x.shape[0], 1), torch.float32)
        self._kernels.sigmoid_scores(x, weight.data, weight.rows, weight.columns, out)
        return out

    def route(self, logits: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self._empty((logits.shape[0], routing.active), torch.int32)
        weights = self._empty((logits.shape[0], routing.active), torch.float32)
        self._kernels.route(logits, routing.scoring.value, routing.norm, ids, weights)
        return ids, weights

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
        rows = x.shape[0]
        y, normed = self._empty(x.shape, x.dtype), self._empty(x.shape, norm.weight.dtype)
        ids = self._empty((rows, routing.active), torch.int32)
        weights = self._empty((rows, routing.active), torch.float32)
        self._kernels.project_and_route(
            attended,
            output.data,
            output.rows,
            output.columns,
            bias,
            x,
            scale,
            norm.weight,
            norm.eps,
            norm.centred,
            router.data,
            router.rows,
            routing.scoring.value,
            routing.norm,
            y,
            normed,
            ids,
            weights,
        )
        return y, normed, ids, weights

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
        out = self._empty(x.shape, x.dtype if residual is None else residual.dtype)
        self._kernels.experts(
            x, weights.gate_up, weights.down, weights.width, ids, scores, activation.value, residual, scale, out
        )
        return out

    # --- attention ----------------------------------------------------------------------------------------------------
    def write_kv(self, k: torch.Tensor, v: torch.Tensor, cache: KVLayer, slots: torch.Tensor) -> None:
        self._kernels.write_kv(k, v, cache.keys, cache.values, cache.block_tokens, slots)

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
        out = self._empty(q.shape, q.dtype) if out is None else out
        self._kernels.attention(
            q,
            cache.keys,
            cache.values,
            cache.kv_heads,
            cache.block_tokens,
            rows.starts,
            rows.cached,
            rows.block_ids,
            scale,
            window,
            out,
        )
        return out

    # --- tokens -------------------------------------------------------------------------------------------------------
    def mask_logits(self, logits: torch.Tensor, allowed: torch.Tensor, rows: torch.Tensor) -> None:
        self._kernels.mask_logits(logits, allowed, rows)

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
        ids = self._empty(logits.shape[:1], torch.int32)
        self._kernels.sample(logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.uniform, ids)
        return ids
