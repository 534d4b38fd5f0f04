"""The ops on a CUDA device, by the compiled kernels of csrc/cuda. No part of this has run on a GPU yet.

Weights and caches lie as the host's ops have them (`NativeOps`), so that one copy in host memory serves the CPU's
kernels and the stream to the device, and a block of the cache can be copied as it is. Products take bfloat16.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from types import ModuleType

import torch

from moelens.errors import KernelError, UnsupportedModelError
from moelens.ops.grouped_mm import grouped_mm_experts
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
    project_and_route_in_turn,
    project_qkv_in_turn,
)
from moelens.ops.native import NativeOps
from moelens.ops.prefill import attend_rows, attend_rows_at_once, has_varlen_attention

ROW_ALIGNMENT = 8  # elements: a row is read 16 bytes at a time


class ExpertProduct(enum.Enum):
    """Which kernels multiply by the experts' weights."""

    PANELS = "panels"  # ours: rounds once, and a row's bits don't depend on the batch
    GROUPED_MM = "grouped_mm"  # torch's, see `grouped_mm`


def load_kernels() -> ModuleType:
    """The compiled module; raises KernelError where moelens was built without a CUDA toolkit."""
    try:
        from moelens import _cuda
    except ImportError as error:
        raise KernelError(
            f"the kernels for GPUs moelens._cuda can't be loaded ({error}); build them where a CUDA toolkit is, with: "
            "MOELENS_CUDA=1 pip install -e ."
        ) from error
    return _cuda


class CudaOps:
    """The ops on tensors of `device`; `host` says how weights and caches lie, packs them and samples.

    Calls are put on the device's current stream and don't wait for it, but for `sample`. Tests pass the emulated
    `kernels` with the CPU as device.
    """

    def __init__(
        self,
        host: NativeOps,
        device: torch.device,
        *,
        kernels: ModuleType | None = None,
        expert_product: ExpertProduct = ExpertProduct.PANELS,
    ) -> None:
        self._host = host
        self._device = device
        self._kernels = kernels or load_kernels()
        self._expert_product = expert_product

    def _stream(self) -> int:
        return torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0

    def _empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)

    # --- storage ------------------------------------------------------------------------------------------------------
    def matrix_shape(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return self._host.matrix_shape(rows, columns, _checked(dtype))

    def gate_up_shape(self, width: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return self._host.gate_up_shape(width, columns, _checked(dtype))

    def down_shape(self, rows: int, width: int, dtype: torch.dtype) -> tuple[int, ...]:
        return self._host.down_shape(rows, width, _checked(dtype))

    def pack_matrix(self, source: torch.Tensor, storage: torch.Tensor, first_row: int = 0) -> None:
        self._host.pack_matrix(source, storage, first_row)

    def pack_gate_up(self, gate: torch.Tensor, up: torch.Tensor, storage: torch.Tensor) -> None:
        self._host.pack_gate_up(gate, up, storage)

    def pack_down(self, source: torch.Tensor, storage: torch.Tensor) -> None:
        self._host.pack_down(source, storage)

    def kv_shapes(
        self, blocks: int, kv_heads: int, head_dim: int, block_tokens: int, dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._host.kv_shapes(blocks, kv_heads, head_dim, block_tokens, _checked(dtype))

    # --- row-wise -----------------------------------------------------------------------------------------------------
    def embed(self, table: torch.Tensor, token_ids: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
        return table.index_select(0, token_ids).to(dtype or table.dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out = self._empty(*x.shape, dtype=weight.dtype)
        self._kernels.rms_norm(x, weight, eps, out, self._stream())
        return out

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out = self._empty(*x.shape, dtype=weight.dtype)
        self._kernels.layer_norm(x, weight, eps, out, self._stream())
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
        out = self._empty(x.shape[0], weight.rows, dtype=wanted)
        self._kernels.linear(
            _padded(x), weight.data, weight.rows, weight.columns, bias, residual, scale, out, self._stream()
        )
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
        rows, (query_heads, kv_heads) = joined.shape[0], heads
        head_dim = joined.shape[1] // (query_heads + 2 * kv_heads)
        q = self._empty(rows, query_heads, head_dim, dtype=dtype)
        k, v = (self._empty(rows, kv_heads, head_dim, dtype=dtype) for _ in range(2))
        q_norm, k_norm, eps = (norm.q, norm.k, norm.eps) if norm else (None, None, 0.0)
        frequencies = rotation.inverse_frequencies.to(self._device)
        self._kernels.split_qkv(
            joined, positions, frequencies, rotation.magnitude, q_norm, k_norm, eps, limit, q, k, v, self._stream()
        )
        return q, k, v

    project_qkv = project_qkv_in_turn
    project_and_route = project_and_route_in_turn

    def scale(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        return (x.float() * factor).to(x.dtype)

    def sigmoid_scores(self, x: torch.Tensor, weight: Matrix) -> torch.Tensor:
        return torch.sigmoid(self.linear(x, weight, dtype=torch.float32))

    def route(self, logits: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self._empty(logits.shape[0], routing.active, dtype=torch.int32)
        weights = self._empty(logits.shape[0], routing.active, dtype=torch.float32)
        self._kernels.route(logits, routing.scoring.value, routing.norm, ids, weights, self._stream())
        return ids, weights

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
        if self._expert_product is ExpertProduct.GROUPED_MM:
            return grouped_mm_experts(x, weights, ids, scores, activation, residual, scale)
        out = self._empty(*x.shape, dtype=x.dtype if residual is None else residual.dtype)
        nbytes = self.experts_workspace_bytes(len(x), weights, ids.shape[1])
        workspace = self._empty(-(-nbytes // 4), dtype=torch.int32)
        self._kernels.experts(
            _padded(x),
            weights.gate_up,
            weights.down,
            weights.width,
            weights.hidden,
            ids,
            scores,
            activation.value,
            residual,
            scale,
            workspace,
            out,
            self._stream(),
        )
        return out

    def experts_workspace_bytes(self, tokens: int, weights: ExpertMatrices, active: int) -> int:
        """Device memory that `experts` takes while it runs, beside its arguments and its result."""
        if tokens == 0:
            return 0
        nbytes = self._kernels.experts_workspace_bytes(tokens, weights.hidden, weights.experts, active, weights.width)
        return int(nbytes)

    # --- attention ----------------------------------------------------------------------------------------------------
    def write_kv(self, k: torch.Tensor, v: torch.Tensor, cache: KVLayer, slots: torch.Tensor) -> None:
        self._kernels.write_kv(k, v, cache.keys, cache.values, cache.block_tokens, slots, self._stream())

    def read_kv(self, cache: KVLayer, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values [C, K, D] at slots [C] int32, as rows: the inverse of `write_kv`."""
        k, v = (self._empty(len(slots), cache.kv_heads, cache.head_dim, dtype=cache.keys.dtype) for _ in range(2))
        self._kernels.read_kv(cache.keys, cache.values, cache.block_tokens, slots, k, v, self._stream())
        return k, v

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
        slots, key_starts = context_slots(rows, cache.block_tokens)
        k, v = self.read_kv(cache, slots.to(self._device))
        attend = attend_rows_at_once if q.is_cuda and has_varlen_attention() else attend_rows
        attended = attend(q, k, v, rows.starts.tolist(), key_starts, scale, window)
        return attended if out is None else out.copy_(attended)

    # --- tokens -------------------------------------------------------------------------------------------------------
    def mask_logits(self, logits: torch.Tensor, allowed: torch.Tensor, rows: torch.Tensor) -> None:
        on_host = logits.cpu()
        self._host.mask_logits(on_host, allowed, rows)
        logits.copy_(on_host)

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
        return self._host.sample(logits.cpu(), rows)


def context_slots(rows: AttentionRows, block_tokens: int) -> tuple[torch.Tensor, list[int]]:
    """The slots of all keys of all requests, one request after another [C] int32, and where each one's begin [S+1]."""
    offsets = torch.arange(block_tokens, dtype=torch.int32)
    slots, starts = [], [0]
    for request, length in enumerate((rows.cached + rows.starts.diff()).tolist()):
        blocks = rows.block_ids[request, : -(-length // block_tokens)]
        slots.append((blocks[:, None] * block_tokens + offsets).flatten()[:length])
        starts.append(starts[-1] + length)
    return torch.cat(slots) if slots else offsets[:0], starts


def choose_expert_product(
    ops: Callable[[ExpertProduct], CudaOps], weights: ExpertMatrices, tokens: int, active: int, calls: int = 5
) -> ExpertProduct:
    """The faster of the two products for `tokens` random rows on the device of `weights`, by the median of `calls`."""
    device = weights.gate_up.device
    x = torch.randn(tokens, weights.hidden, device=device).bfloat16()
    ids = torch.rand(tokens, weights.experts, device=device).topk(active, -1).indices.int()
    scores = torch.full((tokens, active), 1 / active, device=device)

    def seconds(product: ExpertProduct) -> float:
        candidate, times = ops(product), []
        for _ in range(calls + 1):
            _synchronise(device)
            begin = time.perf_counter()
            candidate.experts(x, weights, ids, scores, Activation.SILU)
            _synchronise(device)
            times.append(time.perf_counter() - begin)
        return sorted(times[1:])[calls // 2]  # the first call may have to prepare something

    return min(ExpertProduct, key=seconds)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _checked(dtype: torch.dtype) -> torch.dtype:
    if dtype != torch.bfloat16:
        raise UnsupportedModelError(f"a CUDA device multiplies bfloat16, and dtype is {dtype}; use dtype='bfloat16'.")
    return dtype


def _padded(x: torch.Tensor) -> torch.Tensor:
    """x [T, K] with zeros up to a multiple of 8 columns."""
    missing = -x.shape[1] % ROW_ALIGNMENT
    return torch.nn.functional.pad(x, (0, missing)) if missing else x
