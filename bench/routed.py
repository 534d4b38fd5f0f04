"""What a request that decodes alone moves to an emulated device, against the experts that it is routed to.

python -m bench.routed --model FOLDER --device emulated:link=4GB/s,memory=800MB
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from moelens import LLM, SamplingParams
from moelens.checkpoint.source import read_config
from moelens.models.config import ModelConfig, MoEFFN
from moelens.models.registry import build
from moelens.pipeline.task import Resource


def expert_bytes(config: ModelConfig) -> tuple[int, int]:
    """Bytes of all routed experts, and of those that one row goes to."""
    ffns = [layer.ffn for layer in config.layers if isinstance(layer.ffn, MoEFFN)]
    one = 3 * config.hidden * config.dtype.itemsize
    return sum(one * ffn.width * ffn.experts for ffn in ffns), sum(one * ffn.width * ffn.active for ffn in ffns)


def generate(options: argparse.Namespace, device: str) -> tuple[list[int], int]:
    """The tokens, and the bytes that the last step moved to the device."""
    sizes = {"max_model_len": 512, "kv_cache_memory_bytes": 200_000_000, "max_num_batched_tokens": 256}
    llm = LLM(options.model, device=device, skip_tokenizer_init=True, use_tqdm_on_load=False, **sizes)
    prompt = np.random.default_rng(0).integers(0, llm.engine.vocab, options.prompt_tokens).tolist()
    params = SamplingParams(max_tokens=options.output_tokens, temperature=0, ignore_eos=True, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    return list(output.outputs[0].token_ids), llm.engine.last_timeline.moved_bytes(Resource.TO_DEVICE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", default="emulated:link=4GB/s,memory=800MB")
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--output-tokens", type=int, default=10)
    options = parser.parse_args()
    tokens, moved = generate(options, options.device)
    everything, routed = expert_bytes(build(read_config(options.model), None).config)
    print(f"last step: {moved / 1e6:.1f} MB moved, {routed / 1e6:.1f} MB of experts that it was routed to")
    print(f"ratio {moved / routed:.3f}; all experts take {everything / 1e6:.1f} MB")
    print(f"the same tokens as on the CPU: {tokens == generate(options, 'cpu')[0]}")


if __name__ == "__main__":
    main()
