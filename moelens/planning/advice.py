"""The performance model in one call: a model's config, a machine and a job become a plan and what to expect of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moelens.checkpoint.source import read_config
from moelens.cost.hardware import HardwareSpec
from moelens.cost.seconds import CostModel
from moelens.cost.work import model_weight_bytes
from moelens.cost.workload import Workload
from moelens.devices import CpuDevice, Device, EmulatedDevice
from moelens.errors import ConfigError
from moelens.memory.activations import ActivationPool
from moelens.memory.available import available_bytes
from moelens.models.architecture import Architecture
from moelens.models.config import ModelConfig, Quantization
from moelens.models.registry import build
from moelens.plan import FREE, Streaming
from moelens.planning.catalogue import model_names, named_config, named_hardware, nearest_model
from moelens.planning.default import BLOCK_TOKENS, Limits, Sizes
from moelens.planning.disk import layer_bytes
from moelens.planning.reading import file_bytes_per_second
from moelens.planning.report import Outlook, look_ahead
from moelens.planning.search import choose, device_sizes

CPU = CpuDevice()
THIS = "this"  # the hardware that is measured here
SHARE_OF_MEMORY = 0.9  # of what there is, for weights, cache and activations


@dataclass(frozen=True)
class Wishes:
    """What the user fixed; None: to be chosen."""

    kv_bytes: int | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None
    step_tokens: int | None = None
    max_requests: int | None = None
    threads: int | None = None
    weight_bytes: int | None = None
    block_tokens: int = BLOCK_TOKENS
    streaming: Streaming = FREE
    disk_bytes_per_second: float | None = None


def read_model(model: str, overrides: Mapping[str, Any] | None = None, quantization: str | None = None) -> Architecture:
    """The architecture of a folder, of a config.json, or of a model by its name; no weights are needed.

    Raises ConfigError when it is none of these.
    """
    return build(
        _read_config(model, overrides), quantization=None if quantization is None else Quantization(quantization)
    )


def _read_config(model: str, overrides: Mapping[str, Any] | None) -> Mapping[str, object]:
    path = Path(model)
    if path.is_dir():
        return read_config(path, overrides)
    if path.is_file():
        try:
            return {**json.loads(path.read_text(encoding="utf-8")), **(overrides or {})}
        except ValueError as error:
            raise ConfigError(f"{path} is not a config.json ({error}): give that of the model.") from error
    known = named_config(model)
    if known is None:
        raise ConfigError(
            f"model {model!r} is no folder with a config.json and none of {', '.join(model_names())}; the nearest is "
            f"{nearest_model(model)!r}."
        )
    return {**known, **(overrides or {})}


def advise(
    architecture: Architecture,
    name: str,
    hardware: str,
    workload: Workload,
    wishes: Wishes,
    *,
    device: Device = CPU,
    refresh: bool = False,
) -> Outlook:
    """The chosen plan for a job and what to expect of it; `device` is of this machine.

    Raises ConfigError for a machine that nobody knows, and CapacityError when no plan can hold the job.
    """
    config = architecture.config
    spec, threads = _hardware(architecture, hardware, wishes, device, refresh)
    if config.quantization is not None and spec.device is not None:
        raise ConfigError(
            f"quantization={config.quantization.value!r} on {spec.name} is not supported: products run on its device, "
            "and there are int8 kernels for CPUs only. Leave it out, or give a machine without a device."
        )
    if spec.device is None and (given := list(wishes.streaming.fixed)):
        raise ConfigError(
            f"{', '.join(given)} can't be given for {spec.name}: weights stream to a device only, and it has none. "
            "Leave it out, or give another machine or --device."
        )
    limits = Limits(
        memory_bytes=wishes.host_bytes or _host_bytes(spec, is_here=hardware == THIS),
        max_model_len=workload.longest_tokens,
        max_requests=wishes.max_requests,
        step_tokens=wishes.step_tokens,
        kv_bytes=wishes.kv_bytes,
        weight_bytes=wishes.weight_bytes,
        streaming=wishes.streaming,
    )
    if wishes.disk_bytes_per_second is not None:
        spec = dataclasses.replace(spec, disk_bytes_per_second=wishes.disk_bytes_per_second)
    elif hardware == THIS:
        spec = _with_measured_disk(spec, Path(name), config, limits)
    room = None
    if spec.device is not None:
        same_bits = isinstance(device, EmulatedDevice)
        room = device_sizes(config, int(spec.device.memory_bytes), same_bits=same_bits)
    sizes = sizes_of(config, wishes.block_tokens)
    choice = choose(CostModel(config, spec), sizes, limits, threads, workload, device=room)
    return look_ahead(name, choice, workload)


def sizes_of(config: ModelConfig, block_tokens: int = BLOCK_TOKENS) -> Sizes:
    """Bytes of a model and of a block, by its config alone."""
    block_bytes = config.kv_bytes_per_token * block_tokens
    return Sizes(model_weight_bytes(config), block_bytes, layer_bytes(config), block_tokens)


def _with_measured_disk(spec: HardwareSpec, folder: Path, config: ModelConfig, limits: Limits) -> HardwareSpec:
    """The machine with the rate at which the model's files are read, if there are any and weights don't fit."""
    allowed = limits.memory_bytes if limits.weight_bytes is None else limits.weight_bytes
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    if not files or model_weight_bytes(config) <= allowed:
        return spec
    return dataclasses.replace(spec, disk_bytes_per_second=file_bytes_per_second(files[-1]))


def _hardware(
    architecture: Architecture, hardware: str, wishes: Wishes, device: Device, refresh: bool
) -> tuple[HardwareSpec, int]:
    if hardware != THIS:
        spec = named_hardware(hardware)
        if wishes.device_bytes is not None and spec.device is not None:
            processor = dataclasses.replace(spec.device, memory_bytes=float(wishes.device_bytes))
            spec = dataclasses.replace(spec, device=processor)
        if not isinstance(device, CpuDevice):
            raise ConfigError(f"--device is of this machine, but --hardware is {hardware}: leave one of them out.")
        return spec, wishes.threads or 1
    from moelens.offload import check_device, host_threads
    from moelens.ops.native import NativeOps  # named machines need no kernels
    from moelens.planning.measured import measured_hardware

    check_device(device)
    ops = NativeOps(host_threads(device, wishes.threads), empty=ActivationPool().empty)
    return measured_hardware(architecture, ops, device, refresh=refresh), ops.threads


def _host_bytes(spec: HardwareSpec, *, is_here: bool) -> int:
    left = available_bytes() if is_here else None
    return int(SHARE_OF_MEMORY * (left if left is not None else spec.host.memory_bytes))
