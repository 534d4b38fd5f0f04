"""Makes the requests of a measurement: random token ids, or the lines of a dataset file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moelens.bench.arguments import Options
from moelens.errors import ConfigError


@dataclass(frozen=True)
class BenchRequest:
    """A prompt, as text or as token ids, and the number of tokens to generate from it."""

    prompt: str | list[int]
    output_tokens: int


def make_requests(options: Options, vocab: int, max_model_len: int) -> list[BenchRequest]:
    """The requests that were asked for, the same for the same options.

    Raises ConfigError when the dataset can't be read or random prompts would be too long for the model.
    """
    if options.dataset_path is not None:
        return _read_dataset(options, options.dataset_path)
    assert options.input_len is not None
    longest = _range(options.input_len, options.random_range_ratio)[1]
    longest += _range(options.output_len, options.random_range_ratio)[1]
    if longest > max_model_len:
        raise ConfigError(
            f"--input-len and --output-len ask for up to {longest} tokens a request, but the model holds "
            f"{max_model_len}. Ask for less, or raise --max-model-len if the model allows it."
        )
    return _draw(options, options.input_len, vocab)


def _draw(options: Options, input_len: int, vocab: int) -> list[BenchRequest]:
    random = np.random.default_rng(options.seed)
    inputs = _lengths(random, input_len, options)
    outputs = _lengths(random, options.output_len, options)
    return [
        BenchRequest(random.integers(0, vocab, prompt_tokens).tolist(), int(output_tokens))
        for prompt_tokens, output_tokens in zip(inputs, outputs, strict=True)
    ]


def _lengths(random: np.random.Generator, mean: int, options: Options) -> np.ndarray:
    low, high = _range(mean, options.random_range_ratio)
    return random.integers(low, high, options.num_prompts, endpoint=True)


def _range(mean: int, ratio: float) -> tuple[int, int]:
    return max(1, math.floor(mean * (1 - ratio))), math.ceil(mean * (1 + ratio))


def _read_dataset(options: Options, path: Path) -> list[BenchRequest]:
    prompts: list[str] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if len(prompts) == options.num_prompts:
                    break
                if line.strip():
                    prompts.append(_read_prompt(path, number, line))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--dataset-path {path} can't be read: {error}.") from error
    if not prompts:
        raise ConfigError(f'--dataset-path {path} has no prompts. Each line must be an object {{"prompt": "…"}}.')
    count = options.num_prompts if options.oversample else len(prompts)
    return [BenchRequest(prompts[i % len(prompts)], options.output_len) for i in range(count)]


def _read_prompt(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{path}, line {number}: not JSON ({error}).") from error
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise ConfigError(f'{path}, line {number}: expected an object {{"prompt": "…"}}, got {line.strip()[:80]!r}.')
    return prompt
