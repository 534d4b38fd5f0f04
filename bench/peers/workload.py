"""The work that every peer is given: N prompts of P token ids and G greedy tokens each, end-of-sequence ignored.

Imports nothing that isn't in every Python: the peers' processes read this file in environments of their own.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Workload:
    """`requests` prompts of `prompt_tokens` distinct random ids, `output_tokens` new tokens each."""

    requests: int
    prompt_tokens: int
    output_tokens: int

    @classmethod
    def parse(cls, text: str) -> Workload:
        """From "64x128x64"; raises ValueError for anything else."""
        numbers = [int(number) for number in text.split("x")]
        if len(numbers) != 3 or min(numbers) < 1 or numbers[2] < 2:
            raise ValueError(
                f"{text!r} is no workload: give requests x prompt tokens x output tokens (at least 2), as in 64x128x64"
            )
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.requests}x({self.prompt_tokens},{self.output_tokens})"

    @property
    def tokens(self) -> int:
        """Prompt and output tokens of all requests."""
        return self.requests * (self.prompt_tokens + self.output_tokens)

    @property
    def prefill_only(self) -> Workload:
        """The same prompts, asking for one token."""
        return replace(self, output_tokens=1)

    def prompts(self, vocab: int, seed: int = 0) -> list[list[int]]:
        """The same ids for every peer; no two prompts alike, so that no prefix cache can help."""
        draw = random.Random(f"{seed}:{self.requests}:{self.prompt_tokens}")
        return [[draw.randrange(16, vocab) for _ in range(self.prompt_tokens)] for _ in range(self.requests)]


@dataclass(frozen=True)
class Settings:
    """How a peer is to load a model. `eager`, `gguf` and `vllm_dtype` are for the peers that know such a thing."""

    model: str
    threads: int
    max_model_tokens: int
    max_requests: int
    eager: bool = False
    gguf: str | None = None
    vllm_dtype: str = "bfloat16"

    @property
    def vocab(self) -> int:
        """Vocabulary size from the checkpoint's config."""
        return int(json.loads((Path(self.model) / "config.json").read_text(encoding="utf-8"))["vocab_size"])


@dataclass(frozen=True)
class Run:
    """One run of one peer: seconds without loading, and of the two phases; the first token of every request."""

    seconds: float
    prefill_seconds: float
    decode_seconds: float
    first_tokens: list[int]
