"""Speed of the products: GFLOP/s and GB/s of weights, beside ceilings measured in the same run.

    python bench/kernels.py [experts|linear|pack ...] [--isa ISA] [--threads N] [--tokens T ...]

Weights are cold: each call uses the next of several copies, which together are far larger than the caches. GFLOP/s
counts 2 per weight and row; GB/s counts the weights of the experts that were used, once, as they are stored.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from moelens.ops.interface import Activation, ExpertMatrices, Matrix
from moelens.ops.native import NativeOps

COLD_BYTES = 300 << 20
SHAPES = {"qwen3": (64, 8, 1024, 384), "mixtral": (8, 2, 1024, 3584)}  # experts, active, hidden, width


def seconds_per_call(calls: list[Callable[[], object]], least_seconds: float = 0.3) -> float:
    """Median over five rounds of the mean time of one of `calls`, run in turn."""
    for call in calls:
        call()
    begin = time.perf_counter()
    for call in calls:
        call()
    rounds = max(1, int(least_seconds / max(1e-9, time.perf_counter() - begin)))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(rounds):
            for call in calls:
                call()
        times.append((time.perf_counter() - begin) / rounds / len(calls))
    return statistics.median(times)


def copies(nbytes: int) -> int:
    return max(2, -(-COLD_BYTES // nbytes))


def make_storage(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Random, in memory for which huge pages were asked, as the engine's arena is."""
    import ctypes
    import mmap

    count = torch.Size(shape).numel()
    memory = mmap.mmap(-1, count * dtype.itemsize + (4 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = -address % (2 << 20)
    tensor = torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)
    return tensor.normal_(std=0.05)


def report(name: str, rows: int, seconds: float, flops: float, nbytes: float) -> None:
    speeds = f"{flops / seconds / 1e9:8.1f} GFLOP/s {nbytes / seconds / 1e9:7.2f} GB/s"
    print(f"{name:28s} T={rows:5d} {seconds * 1e3:9.3f} ms {speeds}", flush=True)


def bench_experts(ops: NativeOps, tokens: list[int], dtype: torch.dtype) -> None:
    for shape, (experts, active, hidden, width) in SHAPES.items():
        expert_bytes = 3 * hidden * width * dtype.itemsize
        layers = [
            ExpertMatrices(
                make_storage(experts, *ops.gate_up_shape(width, hidden, dtype), dtype=dtype),
                make_storage(experts, *ops.down_shape(hidden, width, dtype), dtype=dtype),
                experts,
                width,
                hidden,
            )
            for _ in range(copies(experts * expert_bytes))
        ]
        for rows in tokens:
            x = torch.randn(rows, hidden).to(dtype)
            ids = torch.rand(rows, experts).topk(active, -1).indices.int().contiguous()
            scores = torch.softmax(torch.randn(rows, active), -1)
            calls = [lambda w=w, x=x, i=ids, s=scores: ops.experts(x, w, i, s, Activation.SILU) for w in layers]
            used = len(ids.unique())
            report(
                f"experts {shape}",
                rows,
                seconds_per_call(calls),
                2.0 * 3 * hidden * width * rows * active,
                used * expert_bytes,
            )


def bench_linear(ops: NativeOps, tokens: list[int], dtype: torch.dtype) -> None:
    for columns, inner in ((1024, 2048), (3072, 1024), (32768, 1024)):
        nbytes = columns * inner * dtype.itemsize
        weights = [
            Matrix(make_storage(*ops.matrix_shape(columns, inner, dtype), dtype=dtype), columns, inner)
            for _ in range(copies(nbytes))
        ]
        for rows in tokens:
            x = torch.randn(rows, inner).to(dtype)
            calls = [lambda w=w, x=x: ops.linear(x, w) for w in weights]
            report(f"linear {columns} x {inner}", rows, seconds_per_call(calls), 2.0 * columns * inner * rows, nbytes)


def bench_pack(ops: NativeOps, dtype: torch.dtype) -> None:
    source = torch.randn(384, 1024).to(dtype)
    storage = torch.empty(ops.matrix_shape(384, 1024, dtype), dtype=dtype)
    nbytes = source.numel() * dtype.itemsize
    report("pack_matrix", 384, seconds_per_call([lambda: ops.pack_matrix(source, storage)]), 0, nbytes)
    gate_up = torch.empty(ops.gate_up_shape(384, 1024, dtype), dtype=dtype)
    report("pack_gate_up", 384, seconds_per_call([lambda: ops.pack_gate_up(source, source, gate_up)]), 0, 2 * nbytes)
    turned = torch.randn(1024, 384).to(dtype).T
    report("pack_matrix, transposed", 384, seconds_per_call([lambda: ops.pack_matrix(turned, storage)]), 0, nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["experts", "linear", "pack"])
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 64, 256, 2048])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ops, dtype = NativeOps(args.threads, args.isa), getattr(torch, args.dtype)
    print(f"{ops.isa}, {ops.threads} threads, {args.dtype}")
    if "experts" in args.what:
        bench_experts(ops, args.tokens, dtype)
    if "linear" in args.what:
        bench_linear(ops, args.tokens, dtype)
    if "pack" in args.what:
        bench_pack(ops, dtype)


if __name__ == "__main__":
    main()
