"""A worker that times zentorch's fused MoE layer alone, weights cold, as bench/kernels.py times ours."""

from __future__ import annotations

import time
from typing import Any

import torch
import zentorch
from worker import Answer, serve

COLD_BYTES = 300 << 20
ROUND_SECONDS = 0.2


class Layers:
    """Copies of a layer of one shape, and the rows of one number of tokens."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        experts, self._active, self._hidden, width = shape
        self._experts = experts
        copies = max(2, -(-COLD_BYTES // (experts * 3 * self._hidden * width * 2)))
        self._weights = [
            (
                torch.randn(experts, 2 * width, self._hidden, dtype=torch.bfloat16) * 0.05,
                torch.randn(experts, self._hidden, width, dtype=torch.bfloat16) * 0.05,
            )
            for _ in range(copies)
        ]

    def seconds(self, tokens: int) -> float:
        """Mean of one call, in turn over the copies, once they are warm."""
        x = torch.randn(tokens, self._hidden).bfloat16()
        out = torch.empty_like(x)
        ids = torch.rand(tokens, self._experts).topk(self._active, -1).indices.int().contiguous()
        scores = torch.softmax(torch.randn(tokens, self._active), -1)

        def run(repeats: int) -> float:
            begin = time.perf_counter()
            for _ in range(repeats):
                for gate_up, down in self._weights:
                    torch.ops.zentorch.zentorch_fused_moe(out, x, gate_up, down, None, None, scores, ids, False, "silu")
            return time.perf_counter() - begin

        run(1)
        repeats = max(1, int(ROUND_SECONDS / run(1)))
        return run(repeats) / repeats / len(self._weights)


def load(settings: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    torch.set_num_threads(settings["threads"])
    held: dict[tuple[int, ...], Layers] = {}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        shape = tuple(request["shape"])
        if shape not in held:
            held.clear()
            held[shape] = Layers(shape)
        return {"seconds": held[shape].seconds(request["tokens"])}

    return {"name": "zentorch", "version": zentorch.__version__}, answer


if __name__ == "__main__":
    serve(load)
