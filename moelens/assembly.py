"""From options to an engine that is ready to run: architecture, plan, weights, cache."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from moelens.checkpoint.jobs import weight_bytes
from moelens.checkpoint.load import load_weights
from moelens.checkpoint.random import random_weights
from moelens.checkpoint.shared import shared_weights
from moelens.checkpoint.source import read_config, read_generation_config
from moelens.choosing import Layout, LimitChooser, choose_layout
from moelens.cost.hardware import HardwareSpec
from moelens.devices import parse_device
from moelens.engine import Engine
from moelens.errors import CapacityError, ConfigError
from moelens.forecasting import cost_model, expect_steps, machine_measured
from moelens.memory.activations import ActivationPool
from moelens.memory.available import available_bytes
from moelens.memory.kv_cache import kv_block_bytes
from moelens.memory.weights import WeightStore
from moelens.models.architecture import Architecture
from moelens.models.config import Quantization
from moelens.models.registry import build
from moelens.offload import (
    Budget,
    check_device,
    device_sizes,
    guessed_hardware,
    host_threads,
    open_device,
    price_steps,
    slab_bytes,
)
from moelens.ops.native import NativeOps
from moelens.options import EngineOptions
from moelens.plan import Plan, Streaming
from moelens.planning.default import BLOCK_TOKENS, Limits, Sizes
from moelens.planning.device import placed
from moelens.planning.disk import read_layers
from moelens.planning.tuning import Room
from moelens.stopping import Stopping
from moelens.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SHARE_OF_MEMORY = 0.9  # of what is available, when the user names no cpu_memory_bytes
DTYPES: Mapping[str, torch.dtype | None] = {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32}


def build_engine(
    options: EngineOptions, folder: Path, tokenizer: Tokenizer | None, *, show_progress: bool = False
) -> Engine:
    """The engine for the checkpoint in `folder`, its weights loaded with a progress bar if `show_progress`.

    Raises CheckpointError, UnsupportedModelError, ConfigError or CapacityError; all that can be known before the
    weights are read is checked before.
    """
    device = parse_device(options.device)
    check_device(device)
    quantization = None if options.quantization is None else Quantization(options.quantization)
    architecture = build(read_config(folder, options.hf_overrides), DTYPES[options.dtype], quantization)
    threads = options.plan.threads if options.plan else host_threads(device, options.num_threads)
    ops = NativeOps(threads, empty=ActivationPool().empty)
    sizes = _sizes(options, architecture, ops)
    memory_bytes = _memory_bytes(options)
    measured = machine_measured(architecture.config, ops.threads, device)
    layout = _lay_out(options, architecture, ops, sizes, memory_bytes, measured)
    plan, placement = layout.plan, layout.placement
    weights = _weights(options, folder, architecture, ops, plan, show_progress)
    stopping = Stopping(tokenizer, _eos_token_ids(architecture, folder, tokenizer), layout.max_model_len)
    cost = None if measured is None else cost_model(architecture.config, plan, measured, placement)
    pricing = price_steps(device, architecture.config, plan, placement, cost)
    side = open_device(device, architecture, weights, ops, plan, placement, pricing)
    engine = Engine(architecture, weights, ops, side.machine, plan, stopping, side.memory, pricing)
    expect_steps(engine, cost)
    left = memory_bytes - sizes.host_bytes(plan.disk_layers)
    room = Room(options.fixed_limits(), left, sizes.block_bytes, has_device=engine.has_device)
    engine.chooser = LimitChooser(engine, room, pricing, layout.reasons)
    return engine


def _sizes(options: EngineOptions, architecture: Architecture, ops: NativeOps) -> Sizes:
    layers, resident = slab_bytes(architecture, ops)
    total = resident + sum(layer.front + layer.block for layer in layers)
    block_tokens = options.block_size or BLOCK_TOKENS
    block = kv_block_bytes(architecture.config, ops, block_tokens)
    return Sizes(total, block, layers if _has_own_files(options) else (), block_tokens)


def _lay_out(
    options: EngineOptions,
    architecture: Architecture,
    ops: NativeOps,
    sizes: Sizes,
    memory_bytes: int,
    measured: HardwareSpec | None,
) -> Layout:
    config, device = architecture.config, parse_device(options.device)
    room = device_sizes(device, architecture, ops, Budget(options.gpu_memory_utilization, options.gpu_memory_bytes))
    if options.plan is not None:
        length = min(options.max_model_len or config.max_context, options.plan.kv_tokens)
        placement = None if room is None else placed(options.plan, config, room)
        return Layout(options.plan, placement, length, ("laid out by the plan that was given",))
    limits = Limits(
        memory_bytes=memory_bytes,
        max_model_len=options.max_model_len,
        max_requests=options.max_num_seqs,
        step_tokens=options.max_num_batched_tokens,
        kv_bytes=options.kv_cache_memory_bytes,
        weight_bytes=options.cpu_weights_memory_bytes,
        share_prefixes=options.enable_prefix_caching,
        streaming=Streaming.of(options),
    )
    hardware = measured or guessed_hardware(device, ops.threads)
    return choose_layout(config, sizes, limits, ops.threads, hardware, room, measured=measured is not None)


def _memory_bytes(options: EngineOptions) -> int:
    available = available_bytes()
    if options.cpu_memory_bytes is None:
        return int(SHARE_OF_MEMORY * available) if available is not None else 1 << 62
    if available is not None and options.cpu_memory_bytes > available:
        raise CapacityError(
            f"cpu_memory_bytes is {options.cpu_memory_bytes}, but only {available} bytes of memory are available. "
            "Lower it or end other programs."
        )
    return options.cpu_memory_bytes


def _has_own_files(options: EngineOptions) -> bool:
    """Whether this process reads the checkpoint's files, so that it may go on doing so in every step."""
    return options.load_format != "dummy" and options.shared_weights_dir is None


def _weights(
    options: EngineOptions, folder: Path, architecture: Architecture, ops: NativeOps, plan: Plan, show_progress: bool
) -> WeightStore:
    on_disk = plan.disk_layers
    if on_disk and not _has_own_files(options):
        raise ConfigError(
            f"Plan.disk_layers {on_disk} can't be read from disk with load_format='dummy' or shared_weights_dir: leave "
            "one of them out."
        )
    if on_disk and on_disk[-1] >= len(architecture.config.layers):
        raise ConfigError(
            f"Plan.disk_layers {on_disk} are not all of a model of {len(architecture.config.layers)} layers."
        )
    total = weight_bytes(architecture, on_disk)
    with tqdm(total=total, unit="B", unit_scale=True, desc="Loading weights", disable=not show_progress) as bar:

        def progress(nbytes: int) -> None:
            bar.update(nbytes)

        if options.load_format == "dummy":
            return random_weights(architecture, ops, seed=options.seed, threads=ops.threads, progress=progress)
        if options.shared_weights_dir is not None:
            cache = Path(options.shared_weights_dir).expanduser()
            return shared_weights(folder, cache, architecture, ops, threads=ops.threads, progress=progress)
        weights = load_weights(
            *(folder, architecture, ops),
            threads=ops.threads,
            progress=progress,
            disk_layers=on_disk,
            disk_ring_layers=plan.disk_ring_layers,
        )
    if on_disk:
        _tell_of_reads(folder, weights, architecture, plan)
    return weights


def _tell_of_reads(folder: Path, weights: WeightStore, architecture: Architecture, plan: Plan) -> None:
    """Once, what the memory's size costs."""
    layers, rate = read_layers(plan.disk_layers, plan.disk_ring_layers), weights.measure_reads()
    read = weight_bytes(architecture) - weight_bytes(architecture, layers)
    logger.warning(
        "The weights do not fit in memory: the experts of %d of %d layers stay in the files of %s and are read in each "
        "pass, %.2f GB in %.2f s or more at the %.2f GB/s measured. More rows in a step (max_num_seqs, "
        "max_num_batched_tokens) share the reading; cpu_memory_bytes and cpu_weights_memory_bytes set the memory.",
        *(len(layers), len(weights.slabs) - 1, folder, read / 1e9, read / rate, rate / 1e9),
    )


def _eos_token_ids(architecture: Architecture, folder: Path, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Every token that the model's files call an end: of config.json, generation_config.json and the tokenizer."""
    named: set[int] = set(architecture.config.eos_token_ids)
    named.update(_ids(read_generation_config(folder).get("eos_token_id")))
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        named.add(tokenizer.eos_token_id)
    return tuple(sorted(named))


def _ids(value: Any) -> Iterable[int]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else value
