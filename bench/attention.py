"""Speed of attention: decode in GB/s of keys and values, prefill in GFLOP/s, beside ceilings of the same minute.

    python bench/attention.py [decode|prefill|sample ...] [--isa ISA] [--threads N] [--heads 32:8] [--dim 128]

Decode: one token for each of many requests, whose blocks are shuffled over a cache far larger than the processor's
caches. Prefill: whole prompts; a flop is counted only where a row sees a key. Each figure is the median over rounds in
which the ceiling was measured just before: a plain read of the same cache, or multiplications in registers.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import statistics
import time
from collections.abc import Callable

import torch

from moelens import _cpu
from moelens.ops.interface import AttentionRows, KVLayer, SamplingRows
from moelens.ops.native import NativeOps

HUGE_PAGE = 2 << 20


def make_storage(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros in huge pages, as the engine's cache is."""
    count = torch.Size(shape).numel()
    memory = mmap.mmap(-1, count * dtype.itemsize + 2 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    offset = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape).zero_()


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.ops = NativeOps(args.threads, args.isa)
        self.kernels = _cpu.Kernels(self.ops.isa, self.ops.threads)
        self.dtype: torch.dtype = getattr(torch, args.dtype)
        self.query_heads, self.kv_heads = map(int, args.heads.split(":"))
        self.dim, self.block_tokens, self.rounds = args.dim, args.block_tokens, args.rounds
        self.token_bytes = 2 * self.kv_heads * self.dim * self.dtype.itemsize
        self.blocks = args.cache_mb * (1 << 20) // (self.token_bytes * self.block_tokens)
        shapes = self.ops.kv_shapes(self.blocks, self.kv_heads, self.dim, self.block_tokens, self.dtype)
        self.cache = KVLayer(
            *(make_storage(shape, self.dtype) for shape in shapes), self.kv_heads, self.dim, self.block_tokens
        )

    def requests(self, count: int, tokens: int, cached: int) -> AttentionRows:
        columns = -(-(cached + tokens) // self.block_tokens)
        block_ids = torch.randperm(self.blocks)[: count * columns].int().view(count, columns)
        starts = torch.arange(count + 1, dtype=torch.int32) * tokens
        return AttentionRows(starts, torch.full((count,), cached, dtype=torch.int32), block_ids.contiguous())

    def measure(self, name: str, rows: AttentionRows, amount: float, unit: str, ceiling: Callable[[], float]) -> None:
        q = torch.randn(int(rows.starts[-1]), self.query_heads, self.dim).to(self.dtype)
        run = lambda: self.ops.attention(q, self.cache, rows, self.dim**-0.5, None)  # noqa: E731
        run()
        rates, shares = [], []
        for _ in range(self.rounds):
            most = ceiling()
            rates.append(amount / seconds(run) / 1e9)
            shares.append(rates[-1] / most)
        rate, share = statistics.median(rates), statistics.median(shares)
        print(f"{name:34s} {rate:7.1f} {unit} {share:6.1%} (best {max(shares):.1%}) of {rate / share:.1f}", flush=True)

    def read_rate(self) -> float:
        floats = self.cache.values.view(-1).view(torch.float32)
        return floats.numel() * 4 / seconds(lambda: self.kernels.read_memory(floats)) / 1e9

    def multiply_rate(self) -> float:
        begin = time.perf_counter()
        return self.kernels.multiply_registers(2_000_000_000) / (time.perf_counter() - begin) / 1e9

    def decode(self, contexts: list[int]) -> None:
        for context in contexts:
            count = min(256, self.blocks // -(-context // self.block_tokens))
            rows = self.requests(count, 1, context - 1)
            amount = count * context * self.token_bytes
            self.measure(f"decode {count} x {context}", rows, amount, "GB/s", self.read_rate)

    def prefill(self, contexts: list[int]) -> None:
        for context in contexts:
            count = max(1, 4096 // context)
            pairs = count * context * (context + 1) / 2
            rows = self.requests(count, context, 0)
            amount = 4 * self.dim * self.query_heads * pairs
            self.measure(f"prefill {count} x {context}", rows, amount, "GFLOP/s", self.multiply_rate)

    def sample(self) -> None:
        for vocab in (32_000, 151_936):
            logits = torch.randn(64, vocab) * 2
            for name, temperature, top_k, top_p in (
                ("greedy", 0.0, 0, 1.0),
                ("plain", 1.0, 0, 1.0),
                ("top_k 50", 1.0, 50, 1.0),
                ("top_p 0.95", 0.7, 0, 0.95),
            ):
                floats = [torch.full((64,), value) for value in (temperature, top_p, 0.0)]
                rule = SamplingRows(floats[0], torch.full((64,), top_k).int(), *floats[1:], torch.rand(64))
                spent = statistics.median(seconds(lambda r=rule, x=logits: self.ops.sample(x, r)) for _ in range(9))
                print(
                    f"sample {name:10s} V = {vocab:6d} {spent / 64 * self.ops.threads * 1e6:8.1f} us a row and thread"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["decode", "prefill", "sample"])
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--heads", default="32:8")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--block-tokens", type=int, default=32)
    parser.add_argument("--cache-mb", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args)
    print(f"{bench.ops.isa}, {bench.ops.threads} threads, {args.dtype}, heads {args.heads}, D {args.dim}")
    if "decode" in args.what:
        bench.decode([256, 1024, 2048, 8192])
    if "prefill" in args.what:
        bench.prefill([512, 1024, 2048, 4096])
    if "sample" in args.what:
        bench.sample()


if __name__ == "__main__":
    main()
