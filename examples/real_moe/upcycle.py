"""Turns one dense feed-forward block into experts and a router.

Everything here is elementwise IEEE arithmetic and the frozen MT19937 stream of RandomState, so that the bytes are the
same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from real_moe.dense import DenseLayer
from real_moe.recipe import Recipe

Array = np.ndarray
CALIBRATION = Path(__file__).with_name("routers.npz")


@dataclass(frozen=True)
class Calibration:
    """What was measured once over real text.

    `router_rows` [L, 32, H]: logits of mean 0 and standard deviation 1, uncorrelated between rows, so that the experts
    of a layer get about equal shares. `q_mean_square`, `k_mean_square` [L] of the dense model's projections.
    """

    router_rows: Array
    q_mean_square: Array
    k_mean_square: Array


def read_calibration() -> Calibration:
    with np.load(CALIBRATION) as file:
        rows = (file["rows"].astype(np.uint32) << 16).view(np.float32)  # stored as the bits of bf16
        return Calibration(rows, file["q_ms"], file["k_ms"])


def random_stream(*key: object) -> np.random.RandomState:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "little"))


def small_bias(recipe: Recipe, layer: int, name: str, size: int, half_width: float) -> Array:
    """A seeded uniform bias: small, but a loader that drops it changes the output."""
    uniform = random_stream(recipe.seed, layer, name).random_sample(size)
    return ((uniform * 2 - 1) * half_width).astype(np.float32)


def make_expert(
    source: DenseLayer, recipe: Recipe, layer: int, expert: int, first: int = 0
) -> tuple[Array, Array, Array]:
    """Gate, up and down of one expert: the dense neurons from `first` on, with noise, permuted, signs flipped.

    The permutation and the flips of (up, down) leave the function as it is, but any mix-up of projections between
    experts destroys the text instead of hiding in it.
    """
    stream = random_stream(recipe.seed, layer, expert)
    gate, up, down = source.gate[first:], source.up[first:], source.down[:, first:]
    neurons = gate.shape[0]
    order = stream.permutation(neurons)
    signs = (stream.randint(0, 2, neurons) * 2 - 1).astype(np.float32)
    amplitude = np.where(stream.random_sample(neurons) < 0.25, recipe.hot_noise, recipe.noise).astype(np.float32)

    def noisy(weight: Array, amplitudes: Array, whole: Array) -> Array:
        uniform = stream.random_sample(weight.shape).astype(np.float32) * np.float32(2) - np.float32(1)
        return weight + uniform * amplitudes * np.float32(_standard_deviation(whole) * 3**0.5)

    if recipe.noise or recipe.hot_noise:
        gate = noisy(gate, amplitude[:, None], source.gate)
        up = noisy(up, amplitude[:, None], source.up)
        down = noisy(down, amplitude[None, :], source.down)
    return gate[order], up[order] * signs[order, None], down[:, order] * signs[None, order]


def make_experts(
    source: DenseLayer, recipe: Recipe, layer: int, first: int = 0
) -> Iterator[tuple[Array, Array, Array]]:
    """All experts of a layer, in order; two are made at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda expert: make_expert(source, recipe, layer, expert, first), range(recipe.experts))


def _standard_deviation(weight: Array) -> float:
    """Rounded to four digits, so that it does not depend on the order of summation."""
    return float(f"{float(np.sqrt(np.mean(np.square(weight, dtype=np.float64)))):.4g}")
