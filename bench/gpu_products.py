"""The experts' products by each implementation: `gpu_products.py OUTPUT SECONDS`, a part of gpu.py.

TFLOP/s count 2 per weight and row that meet. cuBLAS is one product per expert with gate and up in one, on weights that
lie as it likes them; the peak is the chip's data sheet where it is known here, and what cuBLAS makes of a large square.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from moelens.ops.cuda import CudaOps, ExpertProduct
from moelens.ops.interface import Activation, ExpertMatrices
from moelens.ops.native import NativeOps

SHAPES = {"mixtral-8x7b": (8, 2, 4096, 14336), "qwen3-30b-a3b": (128, 8, 2048, 768)}  # experts, active, hidden, width
TOKENS = (16, 64, 256, 1024, 4096, 8192)
BF16 = torch.bfloat16
# NVIDIA's data sheets, TFLOP/s without sparsity; the first name that is part of the device's counts.
SHEETS = {
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "A40": 149.7,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
    "RTX 5090": 209.5,
    "B200": 2250.0,
}


def seconds_per_call(call: Callable[[], object]) -> float:
    """The median of seven calls, by the device's clock; weights are larger than its caches."""
    call()
    times = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[3]


def square_tflops(side: int = 8192) -> float:
    a, b = (torch.randn(side, side, device="cuda", dtype=BF16) for _ in range(2))
    return 2 * side**3 / seconds_per_call(lambda: a @ b) / 1e12


def sheet_tflops() -> float | None:
    """The chip's dense bfloat16 products with float32 sums, where its data sheet is known here."""
    name = torch.cuda.get_device_name()
    return next((tflops for part, tflops in SHEETS.items() if part in name), None)


def time_shape(ops: dict[str, CudaOps], shape: str, tokens: int) -> dict[str, object]:
    experts, active, hidden, width = SHAPES[shape]
    plain = next(iter(ops.values()))
    gate_up = torch.empty(experts, *plain.gate_up_shape(width, hidden, BF16), dtype=BF16, device="cuda")
    down = torch.empty(experts, *plain.down_shape(hidden, width, BF16), dtype=BF16, device="cuda")
    weights = ExpertMatrices(gate_up.normal_(std=0.02), down.normal_(std=0.02), experts, width, hidden)
    x = torch.randn(tokens, hidden, device="cuda").to(BF16)
    ids = torch.rand(tokens, experts, device="cuda").topk(active, -1).indices.int()
    scores = torch.rand(tokens, active, device="cuda")
    flops = 2.0 * 3 * hidden * width * tokens * active
    row: dict[str, object] = {"shape": shape, "tokens": tokens}
    for name, implementation in ops.items():
        try:
            seconds = seconds_per_call(lambda o=implementation: o.experts(x, weights, ids, scores, Activation.SILU))
            row[f"{name} TFLOP/s"] = flops / seconds / 1e12
            row[f"{name} ms"] = 1e3 * seconds
        except (RuntimeError, torch.OutOfMemoryError) as error:
            row[f"{name} ms"] = f"{type(error).__name__}: {str(error)[:60]}"
    counts = torch.bincount(ids.flatten(), minlength=experts).tolist()
    rows = [torch.randn(count, hidden, device="cuda").to(BF16) for count in counts]
    first, second = gate_up.view(experts, -1, hidden), down.view(experts, hidden, -1)

    def by_cublas() -> None:
        for e in range(experts):
            if counts[e]:
                both = rows[e] @ first[e].T
                inner = torch.nn.functional.silu(both[:, :width]) * both[:, width : 2 * width]
                inner @ second[e, :, :width].T

    row["cuBLAS TFLOP/s"] = flops / seconds_per_call(by_cublas) / 1e12
    return row


def main(output: str, seconds: str) -> None:
    end = time.monotonic() + float(seconds)
    host, device = NativeOps(1), torch.device("cuda", torch.cuda.current_device())
    ops = {product.value: CudaOps(host, device, expert_product=product) for product in ExpertProduct}
    sheet, square = sheet_tflops(), square_tflops()
    rows: list[dict[str, object]] = [{"shape": "one square of 8192", "cuBLAS TFLOP/s": square, "sheet TFLOP/s": sheet}]
    for tokens in TOKENS:
        for shape in SHAPES:
            row = time_shape(ops, shape, tokens)
            reached = row.get("panels TFLOP/s")
            if isinstance(reached, float):
                row["panels % of square"] = 100 * reached / square
            rows.append(row)
            Path(output).write_text(json.dumps(rows))
            torch.cuda.empty_cache()
            if time.monotonic() > end:
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
