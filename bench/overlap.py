"""How well copies, device and host overlap in a step on an emulated device, whose three times are made about equal.

    python bench/overlap.py --model FOLDER --timeline out.png

One step's rows are made up: decode rows of one long context each, whose cached keys are anywhere in a cache of random
numbers, and prompts that begin. The context is chosen so that the host takes as long as the device, and the link's
bandwidth so that the weights do. Then the same step is run

* overlapped, as the engine runs it;
* with its tasks one after another;
* as phases: decode rows and prompts in steps of their own (the schedule of systems that keep prefill and decode apart;
  a prompt's step has as many rows as the mixed one).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moelens.checkpoint.random import random_weights
from moelens.checkpoint.source import read_config
from moelens.cost.routing import EVEN
from moelens.cost.workload import StepShape
from moelens.devices import EmulatedDevice
from moelens.machine.cpu import InlineLane
from moelens.machine.emulated import EmulatedMachine, ThrottledLink
from moelens.machine.machine import Act, Done
from moelens.memory.kv_cache import KVCache, kv_block_bytes
from moelens.models.registry import build
from moelens.offload import open_device, place_plan, price_steps
from moelens.ops.native import NativeOps
from moelens.pipeline.actions import Actions
from moelens.pipeline.drawing import draw_timeline
from moelens.pipeline.executor import Executor
from moelens.pipeline.step import step_tasks
from moelens.pipeline.task import Resource, Task
from moelens.pipeline.timeline import Timeline
from moelens.plan import Plan
from moelens.planning.device import MOST_PARTS
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.schedule.batch import Batch, Chunk, Running, make_batch
from moelens.schedule.prefix import BlockKeys
from moelens.schedule.split import split_step

BLOCK_TOKENS = 32
LINKS = (Resource.TO_DEVICE, Resource.TO_HOST)


@dataclass(frozen=True)
class Rows:
    """A step: so many decode rows that see `context` keys each, and prompts of `prompt_tokens`."""

    decodes: int
    context: int
    prompts: int
    prompt_tokens: int


class AnyBlocks:
    """Block tables that point anywhere into a cache."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks

    def select(self, rows: np.ndarray) -> np.ndarray:
        random = np.random.default_rng(0)
        return random.integers(0, self._blocks, (len(rows), 1 + self.longest // BLOCK_TOKENS), dtype=np.int32)

    longest = 0


class OneLane:
    """All resources in one lane; transfers take the link's time."""

    def __init__(self, bytes_per_second: float) -> None:
        self._links = {resource: ThrottledLane(bytes_per_second) for resource in LINKS}
        self._inline = InlineLane()

    def lane(self, resource: Resource) -> InlineLane:
        return self._links.get(resource, self._inline)


class ThrottledLane(InlineLane):
    def __init__(self, bytes_per_second: float) -> None:
        self._link = ThrottledLink(bytes_per_second)

    def submit(self, task: Task, act: Act, after: Sequence[Done]) -> Done:
        now = time.perf_counter()
        return super().submit(task, lambda: self._link.run(act, now), after)


class Stand:
    """A model with random weights on an emulated device, and steps to run on it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.architecture = build(read_config(options.model), torch.bfloat16)
        config = self.architecture.config
        self.ops = NativeOps(1)
        tokens = options.decodes + options.prompts * options.prompt_tokens
        blocks = options.kv_bytes // kv_block_bytes(config, self.ops, BLOCK_TOKENS)
        self.plan = Plan(
            *(tokens, tokens, blocks, options.parts or MOST_PARTS, options.parts is None),
            ring_layers=2,
            load_chunks=options.chunks,
        )
        device = EmulatedDevice(1 << 40, 1e12)
        whole = place_plan(device, self.plan, self.architecture, self.ops)
        weights = random_weights(self.architecture, self.ops, seed=0, threads=2)
        layouts = [weights.slab(layer).layout for layer in range(len(config.layers))]
        streams = sum(layout.block.nbytes for layout in layouts) - 2 * max(layout.block.nbytes for layout in layouts)
        self.device = EmulatedDevice(whole.device_bytes - streams, 1e12)  # all fronts and a ring of two layers
        placement = place_plan(self.device, self.plan, self.architecture, self.ops)
        self.memory = open_device(self.device, self.architecture, weights, self.ops, self.plan, placement).memory
        pricing = price_steps(self.device, config, self.plan, placement)
        assert pricing is not None
        self.pricing = pricing
        self.cache = KVCache(config, self.ops, blocks=blocks, block_tokens=BLOCK_TOKENS)
        random = torch.randn(1 << 20).bfloat16()
        for layer in self.cache.layers:
            for tensor in (layer.keys, layer.values):
                for piece in tensor.view(-1).split(len(random)):
                    piece.copy_(random[: len(piece)])
        self.tables = AnyBlocks(blocks)
        self.parts = 0  # of the last step

    def batches(self, rows: Rows) -> list[Batch]:
        random = np.random.default_rng(1)
        vocab = self.architecture.config.vocab
        chunks = [self._chunk(random.integers(0, vocab, rows.context), rows.context - 1) for _ in range(rows.decodes)]
        chunks += [self._chunk(random.integers(0, vocab, rows.prompt_tokens), 0) for _ in range(rows.prompts)]
        self.tables.longest = max(rows.context, rows.prompt_tokens)
        groups = split_step(chunks, self.plan, self.pricing)
        return [make_batch(part, self.tables, BLOCK_TOKENS) for part in groups]

    def _chunk(self, tokens: np.ndarray, cached: int) -> Chunk:
        request = Request(0, array("i", tokens.tolist()), SamplingParams(max_tokens=1), seed=0)
        return Chunk(Running(request, 0, BlockKeys(BLOCK_TOKENS), cached), len(tokens) - cached)

    def run(self, executor: Executor, rows: Rows, steps: int) -> list[tuple[float, Timeline]]:
        """Wall seconds and timeline of each of some steps, cut into parts anew each time, the first left out."""
        found = []
        for _ in range(steps + 1):
            parts = self.batches(rows)
            self.parts = len(parts)
            begin = time.perf_counter()
            shapes = [batch.shape for batch in parts]
            actions = Actions(
                *(parts, self.architecture, self.memory, self.cache, self.ops, lambda logits, rows: logits.argmax(1))
            )
            tasks = step_tasks(shapes, self.memory.begin_step(sum(shapes, StepShape())), self.plan)
            with torch.inference_mode():
                timeline = executor.run(tasks, actions, [batch.rows for batch in parts])
            actions.release()
            self.pricing.observe(shapes, timeline.stage_seconds(), EVEN)
            found.append((time.perf_counter() - begin, timeline))
        return found[1:]


def balance(stand: Stand, rows: Rows, steps: int) -> tuple[Rows, float]:
    """Rows for which the host is busy for as long as the device, and the link's bandwidth for which it is, too."""
    bandwidth = 1e10
    for _ in range(3):
        executor = Executor(EmulatedMachine(bandwidth, bandwidth))
        (_, timeline), *_ = stand.run(executor, rows, 1)
        device, host = timeline.busy_seconds(Resource.DEVICE), timeline.busy_seconds(Resource.HOST)
        context = max(BLOCK_TOKENS, int(rows.context * device / host))
        rows = Rows(rows.decodes, context, rows.prompts, rows.prompt_tokens)
        bandwidth = timeline.moved_bytes(Resource.TO_DEVICE) / device
    return rows, bandwidth


def measure(stand: Stand, rows: Rows, bandwidth: float, steps: int, timeline_path: Path | None) -> dict[str, object]:
    executor = Executor(EmulatedMachine(bandwidth, bandwidth))
    overlapped = stand.run(executor, rows, steps)
    parts = stand.parts
    seconds = statistics.median(seconds for seconds, _ in overlapped)
    busy = {r.value: statistics.median(t.busy_seconds(r) for _, t in overlapped) for r in Resource}
    serial = statistics.median(s for s, _ in stand.run(Executor(OneLane(bandwidth)), rows, 1))
    decodes = Rows(rows.decodes, rows.context, 0, rows.prompt_tokens)
    prefill_rows = rows.prompts * rows.prompt_tokens
    tokens = rows.decodes + prefill_rows
    prompts = Rows(0, BLOCK_TOKENS, tokens // rows.prompt_tokens, rows.prompt_tokens)
    decode_seconds = statistics.median(s for s, _ in stand.run(executor, decodes, 2))
    prefill_seconds = statistics.median(s for s, _ in stand.run(executor, prompts, 2))
    phases = decode_seconds + prefill_seconds * prefill_rows / (prompts.prompts * rows.prompt_tokens)
    if timeline_path is not None:
        name, busiest = stand.architecture.config.name, max(busy.values())
        title = f"{name}, a step of {tokens} rows: {seconds:.2f} s, its busiest lane {busiest:.2f} s"
        draw_timeline(overlapped[-1][1], timeline_path, title=title)
    return {
        "rows": vars(rows),
        "parts": parts,
        "link GB/s": bandwidth / 1e9,
        "step s": seconds,
        "steps s": [s for s, _ in overlapped],
        "busy s": busy,
        "step / busiest": seconds / max(busy.values()),
        "one after another s": serial,
        "one after another / step": serial / seconds,
        "phases s": phases,
        "phases / step": phases / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder with a config.json; the weights are random")
    parser.add_argument("--decodes", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--context", type=int, default=2048, help="where the search for the decodes' context begins")
    parser.add_argument("--parts", type=int, help="micro-batches (default: as many as moelens chooses)")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--kv-bytes", type=int, default=1_000_000_000)
    parser.add_argument("--timeline", type=Path, help="draw the last overlapped step to a .png file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stand = Stand(options)
    rows = Rows(options.decodes, options.context, options.prompts, options.prompt_tokens)
    rows, bandwidth = balance(stand, rows, options.steps)
    print(json.dumps(measure(stand, rows, bandwidth, options.steps, options.timeline), indent=2))


if __name__ == "__main__":
    main()
