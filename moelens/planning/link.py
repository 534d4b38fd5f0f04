"""Measures the link between host and device: each way, both ways together, and what copying takes of the processor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moelens.cost.workload import StepShape
from moelens.machine.machine import Done, Machine
from moelens.memory.device import DeviceMemory, Place
from moelens.memory.stores import ArenaStore
from moelens.models.config import ModelConfig
from moelens.pipeline.task import Resource, Stage, Task

SECONDS = 0.15  # of each measurement, about
ROWS = 1024  # of the tensor that is moved: some megabytes, as chunks of weights are
COPIED_BYTES = 256 << 20  # more than caches hold
UP, DOWN = Place(0, "up"), Place(0, "down")


@dataclass(frozen=True)
class Link:
    """Rates of each way alone, the share of them that both ways together keep, and the rate of a plain copy."""

    up_bytes_per_second: float
    down_bytes_per_second: float
    both_ways_share: float
    copy_bytes_per_second: float


def measure_link(machine: Machine, memory: DeviceMemory, config: ModelConfig) -> Link:
    """By transfers of the kind that steps make, on the machine's own lanes."""
    width = max(layer.attention.query_heads * layer.attention.head_dim for layer in config.layers)
    bench = _LinkBench(machine, memory, torch.zeros(ROWS, width, dtype=config.dtype))
    up, down = bench.rates([Resource.TO_DEVICE])[0], bench.rates([Resource.TO_HOST])[0]
    both = bench.rates([Resource.TO_DEVICE, Resource.TO_HOST])
    share = min(1.0, both[0] / up, both[1] / down)
    return Link(up, down, share, bench.copy_rate())


class _LinkBench:
    def __init__(self, machine: Machine, memory: DeviceMemory, rows: torch.Tensor) -> None:
        self._machine = machine
        self._memory = memory
        self._rows = rows
        with torch.inference_mode():
            memory.begin_step(StepShape(prefill_tokens=len(rows)))
            self._on_device = memory.to_device(rows, UP)
            memory.to_host(self._on_device, DOWN)

    def rates(self, ways: Sequence[Resource]) -> list[float]:
        """Bytes per second of each way while all of them are in use."""
        count = max(4, round(SECONDS * self._rate_once(ways[0]) / self._rows.nbytes))
        done = {way: [self._submit(way) for _ in range(count)] for way in ways}
        for each in done.values():
            each[-1].wait()
        return [
            (count - 1) * self._rows.nbytes / (each[-1].end_seconds - each[0].end_seconds) for each in done.values()
        ]

    def copy_rate(self) -> float:
        """Of plain copies on this thread, of memory that no cache holds: most of what comes are weights."""
        piece, pieces = self._rows.nbytes, -(-COPIED_BYTES // self._rows.nbytes)
        source, store = torch.ones(piece * pieces, dtype=torch.uint8), ArenaStore(piece * pieces)
        store.fill(0, source)  # its pages come with the first copy
        times = []
        for begin in range(0, source.nbytes, piece):
            start = time.perf_counter()
            store.fill(begin, source[begin : begin + piece])
            times.append(time.perf_counter() - start)
        return piece / statistics.median(times)

    def _rate_once(self, way: Resource) -> float:
        first, second = self._submit(way), self._submit(way)
        second.wait()
        return self._rows.nbytes / max(1e-6, second.end_seconds - first.end_seconds)

    def _submit(self, way: Resource) -> Done:
        stage, act = (Stage.UPLOAD, self._up) if way is Resource.TO_DEVICE else (Stage.OFFLOAD, self._down)
        return self._machine.lane(way).submit(Task(0, stage, 0, 0, ()), act, ())

    def _up(self) -> int:
        return self._memory.to_device(self._rows, UP).nbytes

    def _down(self) -> int:
        return self._memory.to_host(self._on_device, DOWN).nbytes
