"""What grammars cost: decode steps whose rows are all held to one, beside the same steps without.

    python bench/structured_outputs.py MODEL [--requests 256] [--tokens 48]

Prints the seconds of a decode step, and the seconds in it that go into masks: those that llguidance computes, writing
them over the logits, and taking in the picked tokens.
"""

from __future__ import annotations

import argparse
import time

import torch

from moelens import LLM, SamplingParams
from moelens.ops.native import NativeOps

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 30},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
        "kind": {"enum": ["book", "film", "song"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 20},
    },
    "required": ["kind", "year", "title", "tags"],
    "additionalProperties": False,
}


class Timed(NativeOps):
    """The ops, with a clock on mask_logits."""

    seconds = 0.0

    def mask_logits(self, logits: torch.Tensor, allowed: torch.Tensor, rows: torch.Tensor) -> None:
        begin = time.perf_counter()
        super().mask_logits(logits, allowed, rows)
        self.seconds += time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=48)
    found = parser.parse_args()
    llm = LLM(found.model, max_num_seqs=found.requests, max_model_len=512, use_tqdm_on_load=False)
    ops = Timed(llm.engine.plan.threads)
    llm.engine._sampler._ops = ops
    for form in (None, {"json": SCHEMA, "disable_any_whitespace": True}):
        params = SamplingParams(
            temperature=1.0, max_tokens=found.tokens, ignore_eos=True, structured_outputs=form, seed=1
        )
        measure(llm, ops, params, found.requests)


def measure(llm: LLM, ops: Timed, params: SamplingParams, requests: int) -> None:
    """Run the requests together, and print what their decode steps took."""
    prompts = [f"Item {i}:" for i in range(requests)]
    each = [params.clone() for _ in prompts]
    for index, one in enumerate(each):
        one.seed = index
    totals = llm.engine.totals
    before = (totals.decode_seconds, totals.decode_rows, llm.engine.constraint_seconds + ops.seconds)
    llm.generate(prompts, each, use_tqdm=False)
    steps = (totals.decode_rows - before[1]) / requests
    step = (totals.decode_seconds - before[0]) / steps
    masks = (llm.engine.constraint_seconds + ops.seconds - before[2]) / (steps + 1)
    kind = "free" if params.structured_outputs is None else "held to a JSON Schema"
    print(f"{requests} requests, {kind}: a decode step {step * 1e3:.1f} ms, masks {masks * 1e3:.2f} ms of it", end="")
    print(f" ({masks / step * 100:.2f} %), vocabulary {llm.engine.vocab}")


if __name__ == "__main__":
    main()
