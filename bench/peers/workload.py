"""The work that every peer is given: N prompts of P token ids and G greedy tokens each, end-of-sequence ignored."""

from __future__ import annotations

import json
import random
import resource
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workload:
    """`requests` prompts of `prompt_tokens` distinct random ids, `output_tokens` new tokens each."""

    requests: int
    prompt_tokens: int
    output_tokens: int

    @classmethod
    def parse(cls, text: str) -> Workload:
        """From "64x128x64"."""
        return cls(*(int(number) for number in text.split("x")))

    def __str__(self) -> str:
        return f"{self.requests}x({self.prompt_tokens},{self.output_tokens})"

    def prompts(self, vocab: int, seed: int = 0) -> list[list[int]]:
        """The same ids for every peer; no two prompts alike, so that no prefix cache can help."""
        draw = random.Random(f"{seed}:{self}")
        return [[draw.randrange(16, vocab) for _ in range(self.prompt_tokens)] for _ in range(self.requests)]


@dataclass(frozen=True)
class Result:
    """One run of one peer: seconds without loading, and of the two phases where the peer tells them apart."""

    peer: str
    version: str
    seconds: float
    load_seconds: float
    prefill_seconds: float
    decode_seconds: float
    peak_rss_bytes: int
    first_tokens: list[int]


def report(result: Result, output: str) -> None:
    """Write a run's result where the parent process reads it."""
    Path(output).write_text(json.dumps(asdict(result)))


def vocab_of(model: str) -> int:
    """Vocabulary size from the checkpoint's config."""
    return int(json.loads((Path(model) / "config.json").read_text())["vocab_size"])


def peak_rss_bytes() -> int:
    """Largest resident size that this process or a child of it has had."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage.ru_maxrss for usage in usages) * 1024
