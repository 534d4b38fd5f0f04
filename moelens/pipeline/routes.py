"""Counts which experts the rows of a run go to."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from moelens.cost.routing import EVEN, RoutingLoad
from moelens.models.config import ModelConfig, MoEFFN

LEAST_ROWS = 64  # of a part that is counted; counting takes some 0.3 % of a layer's time for so many
LEAST_CHOICES = 32  # of an expert, on average, from which on a layer's counts are believed (docs/performance_model.md)


class RouteCounts:
    """How often rows went to each expert of each layer, and the load that this comes to."""

    def __init__(self, config: ModelConfig) -> None:
        self._layers = {layer: of.ffn for layer, of in enumerate(config.layers) if isinstance(of.ffn, MoEFFN)}
        self._counts: dict[int, torch.Tensor] = {}  # [E] int64, where the router is
        self._on_host: dict[int, npt.NDArray[np.int64]] = {}  # the same memory, where that is the host's
        self._noted: list[tuple[int, torch.Tensor]] = []  # ids on the host that are not counted yet, and their layers
        self._rows = 0
        needed = sum(LEAST_CHOICES * ffn.experts / ffn.active for ffn in self._layers.values())
        self._due_rows = needed or math.inf
        self._load = EVEN

    def count(self, layer: int, ids: torch.Tensor) -> None:
        """Take in a router's ids [T, A]; see `Actions.on_routes`."""
        if len(ids) < LEAST_ROWS:
            return
        self._rows += len(ids)
        if layer not in self._counts:
            self._counts[layer] = torch.zeros(self._layers[layer].experts, dtype=torch.int64, device=ids.device)
            if ids.is_cpu:
                self._on_host[layer] = self._counts[layer].numpy()
        if layer in self._on_host:
            self._noted.append((layer, ids))
            return
        chosen = ids.flatten()
        self._counts[layer].index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int64))  # bincount waits for GPUs

    def forget_step(self) -> None:
        """Drop what was noted of a step that has failed: its ids may never have been written."""
        self._noted.clear()

    def end_step(self) -> None:
        """Count a step's layers at once, when ids are there: between kernels, which fill the caches, each would take
        several times as long."""
        for layer, ids in self._noted:
            counts = self._on_host[layer]
            counts += np.bincount(ids.numpy().ravel(), minlength=len(counts))  # several times as fast as torch
        self._noted.clear()

    def load(self) -> RoutingLoad:
        """What was counted; EVEN until it is enough. It changes when twice as much was counted as for the last one."""
        if self._rows >= self._due_rows:
            self.end_step()
            believed = [
                counts
                for layer, counts in self._counts.items()
                if counts.sum() >= LEAST_CHOICES * self._layers[layer].experts
            ]
            self._load, self._due_rows = RoutingLoad.of(torch.stack(believed).cpu()), 2 * self._rows
        return self._load
