"""Speed of attention: decode in GB/s of keys and values, prefill in GFLOP/s, beside ceilings of the same minute.

    python bench/attention.py [decode|prefill ...] [--isa ISA] [--threads N] [--heads 32:8] [--dim 128]

Decode: one token for each of many requests, whose blocks are shuffled over a cache far larger than the processor's
caches. Prefill: whole prompts; a flop is counted only where a row sees a key. Each figure is the median over rounds in
which the ceiling was measured just before: a plain read of the same cache, or multiplications in registers. The other
ops, and these beside them, are in bench/kernels.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: this checkout, and not another that is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.ceilings import CeilingMeter, make_storage
from bench.measurement import Call, measure
from moelens import _cpu
from moelens.memory.activations import ActivationPool
from moelens.ops.interface import AttentionRows, KVLayer
from moelens.ops.native import NativeOps

DECODE_CONTEXTS = (256, 1024, 2048, 8192)
PREFILL_CONTEXTS = (512, 1024, 2048, 4096)
PREFILL_TOKENS = 4096  # of all prompts of a call
MOST_REQUESTS = 256


@dataclass(frozen=True)
class AttentionShape:
    """Heads and cache of the layer that attends."""

    query_heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    block_tokens: int = 32
    cache_bytes: int = 1 << 30
    dtype: torch.dtype = torch.bfloat16

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values."""
        return 2 * self.kv_heads * self.dim * self.dtype.itemsize

    @property
    def blocks(self) -> int:
        return self.cache_bytes // (self.token_bytes * self.block_tokens)


class AttentionBench:
    """A cache full of zeros, and calls that attend over it."""

    def __init__(self, ops: NativeOps, shape: AttentionShape) -> None:
        self._ops, self._shape = ops, shape
        shapes = ops.kv_shapes(shape.blocks, shape.kv_heads, shape.dim, shape.block_tokens, shape.dtype)
        storage = (make_storage(of, shape.dtype) for of in shapes)
        self.cache = KVLayer(*storage, shape.kv_heads, shape.dim, shape.block_tokens)

    def decode(self, contexts: Sequence[int] = DECODE_CONTEXTS) -> Iterator[Call]:
        """One row of each of many requests; what is read is every key and value once."""
        shape = self._shape
        for context in contexts:
            count = min(MOST_REQUESTS, shape.blocks // -(-context // shape.block_tokens))
            run = self._attend(count, 1, context - 1)
            nbytes = count * context * shape.token_bytes
            flops = 4.0 * shape.dim * shape.query_heads * count * context
            yield Call("attention, decode", count, [run], flops, nbytes, detail=f"context {context}", of_memory=True)

    def prefill(self, contexts: Sequence[int] = PREFILL_CONTEXTS) -> Iterator[Call]:
        """Whole prompts; keys and values count once."""
        shape = self._shape
        for context in contexts:
            count = max(1, PREFILL_TOKENS // context)
            run = self._attend(count, context, 0)
            flops = 4.0 * shape.dim * shape.query_heads * count * context * (context + 1) / 2
            nbytes = count * context * shape.token_bytes
            yield Call("attention, prefill", count * context, [run], flops, nbytes, detail=f"prompts of {context}")

    def _attend(self, count: int, tokens: int, cached: int):  # type: ignore[no-untyped-def]
        shape = self._shape
        columns = -(-(cached + tokens) // shape.block_tokens)
        block_ids = torch.randperm(shape.blocks)[: count * columns].int().view(count, columns).contiguous()
        starts = torch.arange(count + 1, dtype=torch.int32) * tokens
        rows = AttentionRows(starts, torch.full((count,), cached, dtype=torch.int32), block_ids)
        q = torch.randn(count * tokens, shape.query_heads, shape.dim).to(shape.dtype)
        return lambda: self._ops.attention(q, self.cache, rows, shape.dim**-0.5, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["decode", "prefill"])
    parser.add_argument("--isa", choices=_cpu.available_isas())
    parser.add_argument("--threads", type=int)
    parser.add_argument("--heads", default="32:8")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--block-tokens", type=int, default=32)
    parser.add_argument("--cache-mb", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    wrong = sorted(set(args.what) - {"decode", "prefill"})
    if wrong:
        parser.error(f"there are decode and prefill, got {', '.join(wrong)} (for sampling: bench/kernels.py sample)")
    torch.set_num_threads(1)
    ops, dtype = NativeOps(args.threads, args.isa, ActivationPool().empty), getattr(torch, args.dtype)
    query_heads, kv_heads = map(int, args.heads.split(":"))
    shape = AttentionShape(query_heads, kv_heads, args.dim, args.block_tokens, args.cache_mb << 20, dtype)
    bench = AttentionBench(ops, shape)
    meter = CeilingMeter(ops.isa, ops.threads, bench.cache.values)
    print(f"{ops.isa}, {ops.threads} threads, {args.dtype}, heads {args.heads}, D {args.dim}")
    for what in dict.fromkeys(args.what):
        for call in bench.decode() if what == "decode" else bench.prefill():
            print(measure(call, meter, args.rounds).line(), flush=True)


if __name__ == "__main__":
    main()
