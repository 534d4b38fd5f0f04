"""What a checkpoint is made to: the architecture, its experts and the noise that tells them apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

ARCHITECTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe")
DTYPES = ("bf16", "fp32", "fp16")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the checkpoint's bytes.

    `noise` is the standard deviation of the experts' noise as a share of the weights' own, for ordinary neurons;
    `hot_noise` the same for a random quarter of each expert's neurons. With both 0 all experts of a layer are the same
    function and the model computes what the dense one does. `router_scale` is the standard deviation of the router's
    logits over real text.
    """

    architecture: str
    experts: int = 8
    active: int = 2
    noise: float = 0.03
    hot_noise: float = 0.25
    router_scale: float = 1.5
    seed: int = 0
    dtype: str = "bf16"
    shard_bytes: int = 400 << 20

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not 1 <= self.active <= self.experts <= 31:
            raise ValueError(f"need 1 <= active <= experts <= 31, got active {self.active} and experts {self.experts}")

    @property
    def folder_name(self) -> str:
        """A name that no other recipe has."""
        return f"{self.architecture}-{self.dtype}-{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"


def default_recipe(architecture: str, dtype: str = "bf16") -> Recipe:
    """The recipe of the documentation's figures: beside a shared expert, more routed ones that differ more."""
    if architecture == "qwen2_moe":
        return Recipe(architecture, experts=16, active=4, noise=0.05, hot_noise=0.5, dtype=dtype)
    return Recipe(architecture, dtype=dtype)
