"""Perplexity of real text by a checkpoint as it is and quantised, and how often its likeliest token stays the same.

    python bench/perplexity.py --model FOLDER [FOLDER ...] --text FILE [FILE ...] [--quantization int8] [--windows N]

A text is a plain file, or a .jsonl file with a "prompt" in each line. It is cut into windows of --tokens tokens, each
of which is read from its begin: the perplexity is e to the mean of -log p over all tokens of all windows but the first
of each. Both runs read the same windows. The same top is the share of these places at which both runs' likeliest token
is the same; the last column is the mean of |log p - log p'|.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this checkout, and not another that is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from moelens import LLM, SamplingParams


@dataclass(frozen=True)
class Reading:
    """Of every token but the windows' first ones: its log-probability, and the token that was likeliest there."""

    logprobs: list[float]
    likeliest: list[int]

    @property
    def perplexity(self) -> float:
        return math.exp(-statistics.fmean(self.logprobs))

    def same_top(self, other: Reading) -> float:
        """The share of places with the same likeliest token."""
        return statistics.fmean(a == b for a, b in zip(self.likeliest, other.likeliest, strict=True))

    def distance(self, other: Reading) -> float:
        """The mean difference of log-probabilities, whatever its sign."""
        return statistics.fmean(abs(a - b) for a, b in zip(self.logprobs, other.logprobs, strict=True))


def read_texts(paths: Sequence[Path]) -> str:
    """All of the files, one after the other."""
    texts = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            text = "\n\n".join(json.loads(line)["prompt"] for line in text.splitlines() if line.strip())
        texts.append(text)
    return "\n\n".join(texts)


def cut(token_ids: Sequence[int], tokens: int, windows: int) -> list[list[int]]:
    """At most so many windows of so many tokens, spread evenly over the text."""
    count = min(windows, len(token_ids) // tokens)
    starts = [i * (len(token_ids) // tokens) // count * tokens for i in range(count)]
    return [list(token_ids[start : start + tokens]) for start in starts]


def read(model: str, quantization: str | None, text: str, tokens: int, windows: int, **settings: Any) -> Reading:
    """What the model makes of the text's windows."""
    llm = LLM(model, quantization=quantization, use_tqdm_on_load=False, **settings)
    ids = llm.get_tokenizer()(text, add_special_tokens=False)["input_ids"]
    prompts = [{"prompt_token_ids": window} for window in cut(ids, tokens, windows)]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    reading = Reading([], [])
    for output in llm.generate(prompts, params, use_tqdm=False):
        assert output.prompt_logprobs is not None
        for token, entry in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
            assert entry is not None
            reading.logprobs.append(entry[token].logprob)
            reading.likeliest.append(max(entry, key=lambda one: entry[one].logprob))
    return reading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--num-threads", type=int)
    args = parser.parse_args()
    text = read_texts(args.text)
    print(f"| model | tokens | {args.dtype} | {args.quantization} | change | same top | mean difference of log p |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in args.model:
        settings = {"dtype": args.dtype, "num_threads": args.num_threads}
        plain = read(model, None, text, args.tokens, args.windows, **settings)
        gc.collect()
        quantized = read(model, args.quantization, text, args.tokens, args.windows, **settings)
        gc.collect()
        print(
            f"| {Path(model).name} | {len(plain.logprobs)} | {plain.perplexity:.3f} | {quantized.perplexity:.3f} | "
            f"{quantized.perplexity / plain.perplexity - 1:+.2%} | {quantized.same_top(plain):.1%} | "
            f"{quantized.distance(plain):.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
