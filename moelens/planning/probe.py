"""Measures this machine in under a minute: a few layers of a model, with random weights, by the tasks of real steps.

Every curve comes from the same actions that a run executes, so whatever makes them faster shows here.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from array import array
from collections.abc import Iterator, Sequence

import torch

from moelens.checkpoint.random import random_weights
from moelens.cost.hardware import HardwareSpec, Processor
from moelens.cost.seconds import CostModel
from moelens.cost.work import layer_weight_bytes
from moelens.cost.workload import StepShape
from moelens.devices import CpuDevice, CudaDevice, Device, EmulatedDevice
from moelens.engine import Engine
from moelens.machine.cpu import CpuMachine
from moelens.memory.kv_cache import KVCache, kv_block_bytes
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Architecture
from moelens.offload import Side, open_device, place_plan
from moelens.ops.native import NativeOps, schedulable_cores
from moelens.ops.sampling import Sampler
from moelens.pipeline.actions import Actions
from moelens.pipeline.executor import Executor
from moelens.pipeline.step import step_tasks
from moelens.pipeline.task import OF_NO_LAYER, LayerLoad, Stage
from moelens.plan import Plan
from moelens.planning.curves import DECODE_CONTEXT, MANY_ROWS, summarise
from moelens.planning.link import Link, measure_link
from moelens.planning.reading import ReadMeter, read_bytes_per_second
from moelens.planning.samples import Read, Sample, settle
from moelens.request import Request
from moelens.sampling_params import SamplingParams
from moelens.schedule.batch import Batch, Chunk, LogitRow, Running, make_batch
from moelens.schedule.blocks import BlockPool, BlockTables
from moelens.schedule.prefix import BlockKeys
from moelens.stopping import Stopping

BLOCK_TOKENS = 32
COLD_BYTES = 768 << 20  # of weights, so that no layer is still in a cache when its turn comes again
CACHE_BYTES = 2 << 30  # of a model with large rows
CACHE_TOKENS = 32768  # of context in all, most of which no cache of the processor holds
DECODE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL_ROWS = (16, 64, 256, 512, 1024, 2048)
CONTEXTS = (16, 64, 256, 1024, 4096)
PROMPTS = (16, 32, 64, 128, 256, 1024, 2048)
PROMPT_BLOCKS = PROMPTS[-1] // BLOCK_TOKENS  # of the cache, which prompts write and decodes don't read
SCHEDULED = 64  # requests of the larger step whose scheduling is timed
METER_BYTES = 96 << 20  # of a read that tells how fast memory is just then: some milliseconds
FEW_ROWS = 64  # in steps of which a round is cheap
BUDGET_SECONDS = 32.0  # of all steps, but that each shape is run once; what is measured beside them takes half as long


def probe(architecture: Architecture, ops: NativeOps, device: Device | None = None) -> HardwareSpec:
    """Measure this machine on layers of `architecture`: steps of each shape once, then again while there is time."""
    end = time.perf_counter() + BUDGET_SECONDS
    bench = ProbeBench(architecture, ops, device)
    for shape in bench.few_rows:  # warms the threads and the allocator up
        bench.run(*shape)
    samples: list[Sample] = []
    took = dict.fromkeys(bench.shapes, 0.0)

    def is_due(shape: tuple[int, int, int]) -> bool:
        return not took[shape] or time.perf_counter() + took[shape] < end

    while due := [shape for shape in bench.shapes if is_due(shape)]:
        for shape in filter(is_due, due):
            begin = time.perf_counter()
            samples.append(bench.run(*shape))
            took[shape] = time.perf_counter() - begin
    return bench.spec(samples)


class ProbeBench:
    """A few layers, a cache full of something, and what runs a step of any shape on them."""

    def __init__(self, architecture: Architecture, ops: NativeOps, device: Device | None = None) -> None:
        """With a device, its stages run there, and all weights lie there."""
        self.architecture = truncate(architecture, layers_for_cold(architecture))
        config = self.architecture.config
        self._ops = ops
        self._weights = random_weights(self.architecture, ops, seed=0, threads=ops.threads)
        block_bytes = kv_block_bytes(config, ops, BLOCK_TOKENS)
        allowed = min(CACHE_TOKENS // BLOCK_TOKENS, CACHE_BYTES // block_bytes)
        self._blocks = max(CONTEXTS[-1] // BLOCK_TOKENS + 1, allowed)
        self._cache = KVCache(config, ops, blocks=self._blocks, block_tokens=BLOCK_TOKENS)
        for layer in self._cache.layers:  # pages that nobody wrote are one page of zeros, which a cache would hold
            layer.keys.fill_(0.01)
            layer.values.fill_(0.01)
        self._sampler = Sampler(ops, vocab=config.vocab, eos_token_ids=(), threads=ops.threads)
        self._plan = Plan(step_tokens=PREFILL_ROWS[-1], max_requests=PREFILL_ROWS[-1], kv_blocks=self._blocks)
        side = _open(device or CpuDevice(), self.architecture, self._weights, ops, self._plan)
        self._device = None if isinstance(device, CpuDevice) else device
        self._memory, self._machine = side.memory, side.machine
        self._executor = Executor(side.machine)
        self._fixed: tuple[float, float, float] | None = None  # what is measured once
        self._by_threads: tuple[float, ...] = ()
        self._link: Link | None = None
        self._generator = torch.Generator().manual_seed(0)
        # An emulated device's threads read the same memory.
        self._readers = schedulable_cores() if isinstance(device, EmulatedDevice) else ops.threads
        self.meter = ReadMeter(self._readers, METER_BYTES)
        self.shapes = tuple(dict.fromkeys(self._shapes()))
        self.few_rows = tuple(shape for shape in self.shapes if shape[0] * shape[2] <= FEW_ROWS)

    def round(self) -> list[Sample]:
        """Each shape once. Rounds go through all in turn, so that a slow moment does not fall on one shape alone."""
        return [self.run(*shape) for shape in self.shapes]

    def spec(self, samples: Sequence[Sample], reads: Sequence[Read] = ()) -> HardwareSpec:
        """The machine by samples of each shape, with memory that reads as in `reads` (none: as it did beside them)."""
        if not self._by_threads:
            self._by_threads = tuple(read_bytes_per_second(threads) for threads in range(1, self._readers + 1))
        spec = summarise(self.architecture, settle(samples, reads), self._by_threads)
        if self._fixed is None:
            step, row = self.step_seconds(spec.host.task_seconds)
            self._fixed = step, row, self.fresh_seconds()
        step, row, fresh = self._fixed
        spec = dataclasses.replace(spec, step_seconds=step, row_seconds=row, fresh_seconds_per_byte=fresh)
        return spec if self._device is None else self._with_device(spec)

    def _with_device(self, spec: HardwareSpec) -> HardwareSpec:
        """The same machine as host and device, each by the curves of the stages that run there, and the link."""
        if self._link is None:
            self._link = measure_link(self._machine, self._memory, self.architecture.config)
        spec = dataclasses.replace(
            spec,
            device=dataclasses.replace(spec.host, name="the device", memory_bytes=_memory_bytes(self._device)),
            to_device_bytes_per_second=self._link.up_bytes_per_second,
            to_host_bytes_per_second=self._link.down_bytes_per_second,
            both_ways_share=self._link.both_ways_share,
        )
        if isinstance(self._device, EmulatedDevice):
            return _emulated(spec, self._ops, self._link, self._device)
        return spec

    def run(self, requests: int, cached: int, rows: int) -> Sample:
        """One step of `requests` requests, each with `rows` new tokens after `cached` ones."""
        batch = self._batch(requests, cached, rows)
        routes: list[tuple[int, torch.Tensor]] = []
        pace = self.meter.seconds_per_byte()
        begin = time.perf_counter()
        with torch.inference_mode():
            actions = Actions([batch], self.architecture, self._memory, self._cache, self._ops, self._pick)
            actions.on_routes = lambda layer, ids: routes.append((layer, ids))
            tasks = step_tasks([batch.shape], self._memory.begin_step(batch.shape), self._plan)
            timeline = self._executor.run(tasks, actions, [batch.rows])
            actions.release()
        elapsed = time.perf_counter() - begin
        seconds = timeline.stage_seconds()
        in_tasks = sum(seconds.values())
        layers = len(self.architecture.config.layers)
        per_layer = {stage: s if stage in OF_NO_LAYER else s / layers for stage, s in seconds.items()}
        if layers > 1:  # the last one is finished only for rows that give logits
            spans = [span for span in timeline.spans if span.task.stage is Stage.AFTER_ATTENTION]
            whole = sum(span.seconds for span in spans if span.task.layer < layers - 1)
            per_layer[Stage.AFTER_ATTENTION] = whole / (layers - 1)
        pace = (pace + self.meter.seconds_per_byte()) / 2
        touched = [len(torch.unique(ids)) for layer, ids in routes if layer < layers - 1 or layers == 1]
        mean_touched = statistics.fmean(touched) if touched else 0.0
        return Sample(batch.shape, per_layer, (elapsed - in_tasks) / len(tasks), pace, mean_touched)

    def step_seconds(self, task_seconds: float) -> tuple[float, float]:
        """What a step of decodes takes outside of its tasks, beside what each adds: of itself, and for each row."""
        few, many = self._step_outside(1, task_seconds), self._step_outside(SCHEDULED, task_seconds)
        row = max(0.0, (many - few) / (SCHEDULED - 1))
        return max(0.0, few - row), row

    def _step_outside(self, requests: int, task_seconds: float) -> float:
        plan = dataclasses.replace(self._plan, kv_blocks=2 * SCHEDULED, max_requests=SCHEDULED)
        stopping = Stopping(None, (), self.architecture.config.max_context)
        engine = Engine(self.architecture, self._weights, self._ops, CpuMachine(self._ops.calls), plan, stopping)
        params = SamplingParams(max_tokens=BLOCK_TOKENS, ignore_eos=True, detokenize=False)
        for index in range(requests):
            engine.add(Request(index, array("i", range(BLOCK_TOKENS // 2)), params, seed=index))
        shape = StepShape(decode_tokens=requests, decode_context=requests, logit_rows=requests)
        tasks = len(step_tasks([shape], (LayerLoad(),) * len(self.architecture.config.layers), plan))
        times: list[float] = []
        steps, begin, in_tasks = engine.run(), time.perf_counter(), 0.0
        for _ in steps:
            end, total = time.perf_counter(), sum(engine.totals.stage_seconds.values())
            times.append(end - begin - (total - in_tasks) - tasks * task_seconds)
            begin, in_tasks = end, total
        return max(0.0, statistics.median(times[1:-1]))

    def fresh_seconds(self) -> float:
        """What storing takes longer in a cache that nobody wrote before, per byte of the pages that this needs."""
        config, rows = self.architecture.config, PREFILL_ROWS[-1]
        model = CostModel(config, HardwareSpec("pages", Processor("host", 1.0, 1.0, 1.0), fresh_seconds_per_byte=1.0))
        used = self._cache
        self._cache = KVCache(config, self._ops, blocks=self._blocks, block_tokens=BLOCK_TOKENS)
        first, again = (self.run(1, 0, rows).seconds[Stage.STORE_KV] for _ in range(2))
        self._cache = used
        return max(0.0, first - again) * len(config.layers) / model.fresh_seconds(0, rows)

    def _shapes(self) -> Iterator[tuple[int, int, int]]:
        tokens = (self._blocks - PROMPT_BLOCKS) * BLOCK_TOKENS
        for rows in DECODE_ROWS:
            if rows * (DECODE_CONTEXT + BLOCK_TOKENS) <= tokens:
                yield rows, DECODE_CONTEXT, 1
        for rows in PREFILL_ROWS:
            yield 1, 0, rows
        for context in CONTEXTS:
            for requests in sorted({1, max(2, min(64, tokens // (context + BLOCK_TOKENS)))}):
                yield requests, context - 1, 1
        for prompt in PROMPTS:
            yield max(1, MANY_ROWS // prompt), 0, prompt

    def _batch(self, requests: int, cached: int, rows: int) -> Batch:
        pool = BlockPool(self._blocks)
        if cached:  # what prompts have written would draw all rows to the same experts
            pool.take(PROMPT_BLOCKS)
        tables = BlockTables(pool, requests, BLOCK_TOKENS)
        vocab = self.architecture.config.vocab
        chunks: list[Chunk] = []
        for index in range(requests):
            ids = torch.randint(vocab, (cached + rows,), generator=self._generator)
            request = Request(index, array("i", ids.tolist()), SamplingParams(), seed=index)
            chunks.append(Chunk(Running(request, tables.add_row([]), BlockKeys(BLOCK_TOKENS), cached), rows))
        for tokens in (*range(cached // 2, cached, BLOCK_TOKENS), cached + rows):  # half is there, half has grown
            for chunk in chunks:
                tables.grow(chunk.running.row, tokens)
        return make_batch(chunks, tables, BLOCK_TOKENS)

    def _pick(self, logits: torch.Tensor, rows: Sequence[LogitRow]) -> None:
        self._sampler.sample(logits, [row.request for row in rows])


def _open(device: Device, architecture: Architecture, weights: WeightStore, ops: NativeOps, plan: Plan) -> Side:
    """What runs steps. An emulated device gets room for all of the layers."""
    if isinstance(device, EmulatedDevice):
        device = dataclasses.replace(device, memory_bytes=1 << 40)
    placement = place_plan(device, plan, architecture, ops)
    return open_device(device, architecture, weights, ops, plan, placement)


def _memory_bytes(device: Device | None) -> float:
    if isinstance(device, EmulatedDevice):
        return float(device.memory_bytes)
    assert isinstance(device, CudaDevice)
    return float(torch.cuda.mem_get_info(device.index)[1])


def _emulated(spec: HardwareSpec, ops: NativeOps, link: Link, device: EmulatedDevice) -> HardwareSpec:
    """Device, host and link are threads of one processor, and share its memory."""
    assert spec.device is not None
    return dataclasses.replace(
        spec,
        host=dataclasses.replace(spec.host, cores=float(ops.threads)),
        device=dataclasses.replace(spec.device, cores=float(device.threads)),
        device_shares_memory=True,
        cores=float(schedulable_cores()),
        link_cores=min(1.0, device.link_bytes_per_second / link.copy_bytes_per_second),
    )


def layers_for_cold(architecture: Architecture) -> int:
    """As many layers as it takes to be larger than any cache, two at least, and what the model has at most."""
    config = architecture.config
    return max(1, min(len(config.layers), max(2, -(-COLD_BYTES // layer_weight_bytes(config, 0)))))


def truncate(architecture: Architecture, layers: int) -> Architecture:
    """The model's first layers, with its embedding and head."""
    config = dataclasses.replace(architecture.config, layers=architecture.config.layers[:layers])
    return dataclasses.replace(architecture, config=config, layer_tensors=architecture.layer_tensors[:layers])
