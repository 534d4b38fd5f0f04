"""How rows are shared out among a layer's experts, and how many experts that makes them touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from moelens.models.config import MoEFFN


@dataclass(frozen=True)
class RoutingLoad:
    """How often a token chooses each expert: `shares` sum to 1, all layers alike; empty means evenly.

    Tokens are taken as independent of each other.
    """

    shares: Sequence[float] = ()

    @classmethod
    def of(cls, counts: torch.Tensor) -> RoutingLoad:
        """By how often each expert of each layer was chosen, counts [L, E].

        Each layer has its own busy experts, so that a mean over layers, expert by expert, would look even where none of
        them is. The shares of all L·E experts are sorted instead, and one is made of each L that then lie side by side:
        `touched` is the mean over layers, but for what the L differ by.
        """
        layers, experts = counts.shape
        shares = counts.double() / counts.sum(dim=1, keepdim=True)
        alike = shares.flatten().sort(descending=True).values.view(experts, layers)
        return cls(tuple(alike.mean(dim=1).tolist()))

    def touched(self, ffn: MoEFFN, tokens: int) -> float:
        """Expected number of experts that at least one of `tokens` tokens chooses.

        Evenly E·(1 - (1 - A/E)^T); with shares s_e, an expert is chosen by a token with probability min(1, A·s_e).
        """
        if not self.shares:
            return ffn.experts * (1.0 - (1.0 - ffn.active / ffn.experts) ** tokens)
        assert len(self.shares) == ffn.experts
        return _touched(tuple(self.shares), ffn.active, tokens)

    @property
    def imbalance(self) -> float:
        """The busiest expert's load over the mean one's."""
        return max(self.shares) * len(self.shares) if self.shares else 1.0


EVEN = RoutingLoad()


@lru_cache(maxsize=1024)  # the steps of a run ask for the same numbers of rows again and again
def _touched(shares: tuple[float, ...], active: int, tokens: int) -> float:
    return sum(1.0 - (1.0 - min(1.0, active * share)) ** tokens for share in shares)
