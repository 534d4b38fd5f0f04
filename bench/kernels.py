"""Speed of every op: GFLOP/s, GB/s and the share of the ceilings measured just before, and torch and zentorch beside.

    python bench/kernels.py [experts linear attention row_wise sample pack …] [--isa ISA] [--threads N] [--tokens T …]
        [--int8] [--zentorch ENV/bin/python] [--plot FILE.png] [--json FILE]

Weights are cold: each call uses the next of several copies, which together are far larger than the caches. GFLOP/s
counts 2 per weight and row; GB/s counts the weights of the experts that were used, once, as they are stored, and of the
row-wise ops what they read and write. A share is of max(flops / multiplications in registers, bytes / plain read), with
the instruction set and the threads that run; medians over rounds. "1.50 x torch" says that torch's F.linear, run in
turn with ours on the same shape, took 1.50 times as long. --zentorch names the Python of an environment with zentorch,
whose fused MoE layer is then run in turn with ours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

if not __package__:  # run as a file: this checkout, and not another that is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from bench.attention import AttentionBench, AttentionShape
from bench.ceilings import CeilingMeter, make_storage
from bench.measurement import Call, Measurement, mean_seconds, measure, repeats_of
from bench.peers.process import FOLDER, Worker, environment_of, has_module
from moelens import _cpu
from moelens.memory.activations import ActivationPool
from moelens.ops.interface import Activation, ExpertMatrices, Matrix, QKNorm, Rotation, Routing, SamplingRows
from moelens.ops.native import NativeOps

COLD_BYTES = 300 << 20
EXPERT_SHAPES = {"qwen3": (64, 8, 1024, 384), "mixtral": (8, 2, 1024, 3584)}  # experts, active, hidden, width
LINEAR_SHAPES = ((1024, 2048), (3072, 1024), (32768, 1024))  # columns of the result, columns of the weight
Rivals = dict[str, Callable[[], float]]


@dataclass(frozen=True)
class Setup:
    """What all benches share."""

    ops: NativeOps
    dtype: torch.dtype
    tokens: Sequence[int] = (16, 64, 256, 2048)
    linear_tokens: Sequence[int] = (1, 8, 64, 512)
    row_tokens: int = 2048
    cold_bytes: int = COLD_BYTES
    int8: bool = False  # weights of products, beside activations of `dtype`

    @property
    def kept(self) -> torch.dtype:
        """What the weights of products are kept in."""
        return torch.int8 if self.int8 else self.dtype

    def matrices(self, *shape: int) -> torch.Tensor:
        """Packed weights, random, where the engine would keep them."""
        if not self.int8:
            return self.weights(*shape)
        storage = make_storage(shape, torch.int8).random_(-128, 128)
        storage.view(-1, shape[-3], 128)[:, -1].view(torch.float32).fill_(0.05 / 64)  # the columns' scales
        return storage

    def copies(self, nbytes: int) -> int:
        """How many copies of so many bytes are cold when each is used in turn."""
        return max(2, -(-self.cold_bytes // nbytes))

    def weights(self, *shape: int) -> torch.Tensor:
        """Random, where the engine would keep them."""
        return make_storage(shape, self.dtype).normal_(std=0.05)


def bench_experts(setup: Setup, rivals_of: Callable[[str, int], Rivals]) -> Iterator[tuple[Call, Rivals]]:
    ops = setup.ops
    for shape, (experts, active, hidden, width) in EXPERT_SHAPES.items():
        expert_bytes = 3 * hidden * width * setup.kept.itemsize
        gate_up = ops.gate_up_shape(width, hidden, setup.kept)
        down = ops.down_shape(hidden, width, setup.kept)
        layers = [
            ExpertMatrices(setup.matrices(experts, *gate_up), setup.matrices(experts, *down), experts, width, hidden)
            for _ in range(setup.copies(experts * expert_bytes))
        ]
        for rows in setup.tokens:
            x = torch.randn(rows, hidden).to(setup.dtype)
            ids = torch.rand(rows, experts).topk(active, -1).indices.int().contiguous()
            scores = torch.softmax(torch.randn(rows, active), -1)
            calls = [lambda w=w, x=x, i=ids, s=scores: ops.experts(x, w, i, s, Activation.SILU) for w in layers]
            flops = 2.0 * 3 * hidden * width * rows * active
            call = Call("experts", rows, calls, flops, len(ids.unique()) * expert_bytes, detail=shape)
            yield call, rivals_of(shape, rows)


def bench_linear(setup: Setup, threads: int) -> Iterator[tuple[Call, Rivals]]:
    ops = setup.ops
    for columns, inner in LINEAR_SHAPES:
        nbytes = columns * inner * setup.kept.itemsize
        count = setup.copies(nbytes)
        packed = ops.matrix_shape(columns, inner, setup.kept)
        weights = [Matrix(setup.matrices(*packed), columns, inner) for _ in range(count)]
        plain = [setup.weights(columns, inner) for _ in range(count)]
        for rows in setup.linear_tokens:
            x = torch.randn(rows, inner).to(setup.dtype)
            calls = [lambda w=w, x=x: ops.linear(x, w) for w in weights]
            theirs = [lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in plain]
            call = Call("linear", rows, calls, 2.0 * columns * inner * rows, nbytes, detail=f"{columns} x {inner}")
            yield call, {"torch": on_threads(theirs, threads)}


def on_threads(calls: Sequence[Callable[[], object]], threads: int) -> Callable[[], float]:
    """Seconds of one of torch's calls on so many threads, which wait as torch lets them wait once it is done."""
    torch.set_num_threads(threads)
    repeats = repeats_of(calls)
    torch.set_num_threads(1)

    def run() -> float:
        torch.set_num_threads(threads)
        try:
            return mean_seconds(calls, repeats)
        finally:
            torch.set_num_threads(1)

    return run


def bench_row_wise(setup: Setup) -> Iterator[Call]:
    """Norm, q k v, router and cache, on rows that are not in the processor's caches."""
    ops, rows, dtype = setup.ops, setup.row_tokens, setup.dtype
    query_heads, kv_heads, dim, hidden, experts, active = 16, 4, 128, 1024, 64, 8
    item, width = dtype.itemsize, (16 + 2 * 4) * 128

    nbytes = rows * hidden * (4 + item)
    several = [torch.randn(rows, hidden) for _ in range(setup.copies(nbytes))]
    weight = torch.ones(hidden, dtype=dtype)
    yield Call("rms_norm", rows, [lambda x=x: ops.rms_norm(x, weight, 1e-6) for x in several], 0.0, nbytes)

    nbytes = 2 * rows * width * item
    several = [torch.randn(rows, width).to(dtype) for _ in range(setup.copies(nbytes))]
    positions = torch.arange(rows, dtype=torch.int32)
    rotation = Rotation(1e4 ** -(torch.arange(dim // 2) / (dim // 2)), 1.0)
    norm = QKNorm(torch.ones(dim, dtype=dtype), torch.ones(dim, dtype=dtype), 1e-6)
    split = [
        lambda x=x: ops.split_qkv(x, (query_heads, kv_heads), positions, rotation, norm=norm, dtype=dtype)
        for x in several
    ]
    yield Call("split_qkv", rows, split, 0.0, nbytes)

    nbytes = rows * (experts + 2 * active) * 4
    several = [torch.randn(rows, experts) for _ in range(setup.copies(nbytes))]
    routing = Routing(active, norm=1.0)
    yield Call("route", rows, [lambda x=x: ops.route(x, routing) for x in several], 0.0, nbytes)

    nbytes = 2 * 2 * rows * kv_heads * dim * item
    shape = AttentionShape(query_heads, kv_heads, dim, dtype=dtype, cache_bytes=max(setup.cold_bytes, nbytes))
    cache = AttentionBench(ops, shape).cache
    slots = torch.randperm(shape.blocks * shape.block_tokens // 4).int()[:rows].contiguous()
    slots = slots.sort().values.int()
    pairs = [torch.randn(2, rows, kv_heads, dim).to(dtype) for _ in range(setup.copies(nbytes))]
    yield Call("write_kv", rows, [lambda p=p: ops.write_kv(p[0], p[1], cache, slots) for p in pairs], 0.0, nbytes)


def bench_sample(setup: Setup, rows: int = 64) -> Iterator[Call]:
    for vocab in (32_000, 151_936):
        nbytes = rows * vocab * 4
        several = [torch.randn(rows, vocab) * 2 for _ in range(setup.copies(nbytes))]
        for name, temperature, top_k, top_p in (
            ("greedy", 0.0, 0, 1.0),
            ("plain", 1.0, 0, 1.0),
            ("top_k 50", 1.0, 50, 1.0),
            ("top_p 0.95", 0.7, 0, 0.95),
        ):
            floats = [torch.full((rows,), value) for value in (temperature, top_p, 0.0)]
            rule = SamplingRows(floats[0], torch.full((rows,), top_k).int(), *floats[1:], torch.rand(rows))
            calls = [lambda x=x, r=rule: setup.ops.sample(x, r) for x in several]
            yield Call("sample", rows, calls, 0.0, nbytes, detail=f"{name}, V {vocab}")


def bench_pack(setup: Setup) -> Iterator[Call]:
    """Matrices as they come from files: read once, written once."""
    ops, rows, columns = setup.ops, 384, 1024
    source = torch.randn(rows, columns).to(setup.dtype)
    storage = torch.empty(ops.matrix_shape(rows, columns, setup.dtype), dtype=setup.dtype)
    gate_up = torch.empty(ops.gate_up_shape(rows, columns, setup.dtype), dtype=setup.dtype)
    turned = torch.randn(columns, rows).to(setup.dtype).T
    nbytes = 2 * source.numel() * setup.dtype.itemsize
    yield Call("pack_matrix", rows, [lambda: ops.pack_matrix(source, storage)], 0.0, nbytes)
    yield Call("pack_gate_up", rows, [lambda: ops.pack_gate_up(source, source, gate_up)], 0.0, 2 * nbytes)
    yield Call("pack_matrix", rows, [lambda: ops.pack_matrix(turned, storage)], 0.0, nbytes, detail="transposed")


class ZentorchLayer:
    """zentorch's fused MoE layer, in a process of its own; without it there is no rival."""

    def __init__(self, worker: Worker | None) -> None:
        self._worker = worker

    def rivals(self, shape: str, rows: int) -> Rivals:
        """To be timed in turn with our layer of the same shape."""
        worker = self._worker
        if worker is None:
            return {}
        request = {"shape": EXPERT_SHAPES[shape], "tokens": rows}
        return {"zentorch": lambda: float(worker.ask(request)["seconds"])}


def start_zentorch(python: str, threads: int) -> Worker | None:
    """The worker, or None, saying so, where that Python has no zentorch."""
    if not has_module(python, "zentorch"):
        print(
            f"zentorch is left out, {python} doesn't have it: pip install zentorch beside the torch it asks for in an "
            "environment of its own, then --zentorch THAT/bin/python",
            file=sys.stderr,
        )
        return None
    return Worker(
        FOLDER / "run_zentorch_layer.py", python, {"threads": threads}, environment_of("zentorch", python, threads)
    )


def calls_of(what: str, setup: Setup, zentorch: ZentorchLayer) -> Iterator[tuple[Call, Rivals]]:
    """All that is measured under a name."""
    if what == "experts":
        yield from bench_experts(setup, zentorch.rivals)
    elif what == "linear":
        yield from bench_linear(setup, setup.ops.threads)
    elif what == "attention":
        bench = AttentionBench(setup.ops, AttentionShape(dtype=setup.dtype))
        yield from ((call, {}) for calls in (bench.decode(), bench.prefill()) for call in calls)
    else:
        bench_of = {"row_wise": bench_row_wise, "sample": bench_sample, "pack": bench_pack}[what]
        yield from ((call, {}) for call in bench_of(setup))


WHAT = ("experts", "linear", "attention", "row_wise", "sample", "pack")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=list(WHAT), metavar="OP", help=", ".join(WHAT))
    parser.add_argument("--isa", choices=_cpu.available_isas())
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--tokens", type=int, nargs="+", help="rows of experts (16 64 256 2048) and linear (1 8 64 512)"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--int8", action="store_true", help="weights of experts and linear in int8, and its ceiling")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zentorch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw where each op stands (needs matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    wrong = sorted(set(args.what) - set(WHAT))
    if wrong:
        parser.error(f"there are {', '.join(WHAT)}, got {', '.join(wrong)}")
    torch.set_num_threads(1)
    setup = Setup(NativeOps(args.threads, args.isa, ActivationPool().empty), getattr(torch, args.dtype), int8=args.int8)
    if args.int8 and set(args.what) - {"experts", "linear"}:
        parser.error("--int8 is of experts and linear: name these")
    if args.tokens:
        setup = replace(setup, tokens=args.tokens, linear_tokens=args.tokens)
    ops = setup.ops
    meter = CeilingMeter(ops.isa, ops.threads, int8=args.int8)
    title = f"{ops.isa}, {ops.threads} threads, {args.dtype}{', int8 weights' if args.int8 else ''}"
    print(title, flush=True)
    found: list[Measurement] = []
    with contextlib.ExitStack() as stack:
        worker = start_zentorch(args.zentorch, ops.threads) if "experts" in args.what else None
        zentorch = ZentorchLayer(stack.enter_context(worker) if worker else None)
        for what in dict.fromkeys(args.what):
            for call, rivals in calls_of(what, setup, zentorch):
                found.append(measure(call, meter, args.rounds, rivals))
                print(found[-1].line(), flush=True)
    if args.json:
        args.json.write_text(json.dumps([as_json(one) for one in found], indent=1))
    if args.plot:
        from bench.roofline_plot import draw

        draw(found, args.plot, title)


def as_json(one: Measurement) -> dict[str, object]:
    """All of a measurement but the calls themselves."""
    call = one.call
    return {
        "op": call.op,
        "detail": call.detail,
        "rows": call.rows,
        "flops": call.flops,
        "bytes": call.nbytes,
        "seconds": one.seconds,
        "shares": list(one.shares),
        "ceiling": asdict(one.ceiling),
        "versus": one.versus,
    }


if __name__ == "__main__":
    main()
