"""What this machine was measured to do, kept in a file per machine, build and shape of layer."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from moelens import _cpu
from moelens.cost.hardware import HardwareSpec, read_hardware, to_json
from moelens.devices import CpuDevice, CudaDevice, Device
from moelens.errors import ConfigError
from moelens.models.architecture import Architecture
from moelens.models.config import ModelConfig
from moelens.ops.native import NativeOps
from moelens.planning.probe import probe

CPU = CpuDevice()


def measured_hardware(
    architecture: Architecture,
    ops: NativeOps,
    device: Device = CPU,
    *,
    refresh: bool = False,
    folder: Path | None = None,
) -> HardwareSpec:
    """This machine as it was measured on layers of this shape, measured now when it was not yet or on `refresh`."""
    known = None if refresh else known_hardware(architecture.config, ops.threads, ops.isa, device, folder=folder)
    if known is not None:
        return known
    spec = probe(architecture, ops, device)
    path = hardware_file(architecture.config, ops.threads, ops.isa, device, folder=folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(to_json(spec), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return spec


def known_hardware(
    config: ModelConfig, threads: int, isa: str, device: Device = CPU, *, folder: Path | None = None
) -> HardwareSpec | None:
    """This machine as it was measured before; None when it was not, or the file is damaged."""
    path = hardware_file(config, threads, isa, device, folder=folder)
    try:
        return read_hardware(path) if path.exists() else None
    except ConfigError:
        return None  # it is measured again


def hardware_file(
    config: ModelConfig, threads: int, isa: str, device: Device = CPU, *, folder: Path | None = None
) -> Path:
    """Where the measurements lie: below huggingface_hub's own cache, as what is downloaded does.

    The name tells processor, threads, instruction set, build of the kernels, device and shape of layer apart.
    """
    if folder is None:
        from huggingface_hub import constants

        folder = Path(constants.HF_HOME) / "moelens" / "hardware"
    processor = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    name = re.sub(r"\W+", "-", processor[1] if processor else "processor").strip("-").lower()
    build = Path(_cpu.__file__).stat()
    first = config.layers[0]
    attention = (first.attention.query_heads, first.attention.kv_heads, first.attention.head_dim)
    numbers = (str(config.dtype), config.quantization)
    shape = (config.hidden, config.vocab, numbers, attention, first.ffn, len(set(config.layers)))
    of_device = () if isinstance(device, CpuDevice) else (_device_name(device),)
    key = hashlib.sha256(repr((build.st_size, build.st_mtime_ns, shape, *of_device)).encode()).hexdigest()[:12]
    return folder / f"{name}-{threads}-{isa}-{key}.json"


def _device_name(device: Device) -> object:
    """What of a device its figures depend on."""
    if not isinstance(device, CudaDevice):
        return device
    import torch

    return device, torch.cuda.get_device_name(device.index), torch.version.cuda


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
