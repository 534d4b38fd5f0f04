"""What a request that decodes alone moves to an emulated device, against the experts that it is routed to, and how long
its steps take, with experts on the host where that is cheaper and without.

python -m bench.routed --model FOLDER --device emulated:link=4GB/s,memory=800MB
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moelens import LLM, SamplingParams
from moelens.checkpoint.source import read_config
from moelens.models.config import ModelConfig, MoEFFN
from moelens.models.registry import build
from moelens.pipeline.report import StepReport
from moelens.pipeline.task import Resource
from moelens.plan import Plan


def expert_bytes(config: ModelConfig) -> tuple[int, int]:
    """Bytes of all routed experts, and of those that one row goes to."""
    ffns = [layer.ffn for layer in config.layers if isinstance(layer.ffn, MoEFFN)]
    one = 3 * config.hidden * config.dtype.itemsize
    return sum(one * ffn.width * ffn.experts for ffn in ffns), sum(one * ffn.width * ffn.active for ffn in ffns)


@dataclass(frozen=True)
class Decoding:
    """A lone request's tokens; of each step that decodes, its seconds and the bytes that it moved to the device; and
    the plan that it ran by."""

    tokens: list[int]
    seconds: list[float]
    moved_bytes: list[int]
    plan: Plan


def generate(options: argparse.Namespace, device: str, plan: Plan | None = None) -> Decoding:
    """Decode one request."""
    sizes = {"kv_cache_memory_bytes": 200_000_000, "max_num_batched_tokens": 256} if plan is None else {"plan": plan}
    llm = LLM(
        options.model, device=device, max_model_len=512, skip_tokenizer_init=True, use_tqdm_on_load=False, **sizes
    )
    seconds, moved_bytes = [], []

    def observe(report: StepReport) -> None:
        seconds.append(report.seconds)
        moved_bytes.append(llm.engine.last_timeline.moved_bytes(Resource.TO_DEVICE))

    prompt = np.random.default_rng(0).integers(0, llm.engine.vocab, options.prompt_tokens).tolist()
    params = SamplingParams(max_tokens=options.output_tokens, temperature=0, ignore_eos=True, detokenize=False)
    llm.engine.on_step = observe
    (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    return Decoding(list(output.outputs[0].token_ids), seconds[1:], moved_bytes[1:], llm.engine.plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", default="emulated:link=4GB/s,memory=800MB")
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--output-tokens", type=int, default=10)
    options = parser.parse_args()
    everything, routed = expert_bytes(build(read_config(options.model), None).config)
    print(f"{everything / 1e6:.1f} MB of experts in all, {routed / 1e6:.1f} MB of those that a token is routed to")
    tokens = generate(options, "cpu").tokens
    with_host = generate(options, options.device)
    without = generate(options, options.device, replace(with_host.plan, experts_on_host=False))
    for name, found in {"all on the device": without, "some on the host": with_host}.items():
        last, moved = found.seconds[len(found.seconds) // 2 :], found.moved_bytes[-1]
        print(
            f"{name}: a step takes {statistics.median(last):.4f} s, the last moved {moved / 1e6:.1f} MB, "
            f"{moved / routed:.3f} of its experts; tokens as on the CPU: {found.tokens == tokens}"
        )


if __name__ == "__main__":
    main()
